"""Preprocessing of unlabeled images with the plans of the labeled data set.

`nnUNet_raw/DatasetXXX/imagesUn` goes to `nnUNet_preprocessed/DatasetXXX/<data_identifier>_unlabeled`. Stamps, lock and
temporary files lie in a folder beside it, because nnU-Net infers format and cases from a folder's listing.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.data.checksums import DamagedCaseError, PreprocessedFiles, checksum_of
from nnunet_ssl.data.dataset_reader import NOT_FINITE, DatasetReader, WrongChannelCountError, refuse_unusable
from nnunet_ssl.data.disk_faults import blaming_the_disk, naming
from nnunet_ssl.data.hashed_files import HashedFile
from nnunet_ssl.data.image_files import fault_of_the_machine, refuse_damaged
from nnunet_ssl.data.image_fit import refuse_unfit
from nnunet_ssl.data.in_processes import in_processes
from nnunet_ssl.data.locks import WHOLE, Part, preprocessing_alone
from nnunet_ssl.data.noted_voxels import NotingPlans
from nnunet_ssl.data.pool_index import read_stamps, sizes_and_times
from nnunet_ssl.data.preprocessed_images import Content, content_of, open_image, write_json_atomically
from nnunet_ssl.data.raw_files import channel_names, channel_problem, unlabeled_images, unused_files, with_sidecars
from nnunet_ssl.data.stamps import Mark, Stamp, checksums_of, mark_of, quick_mark, stamp_file, state_folder
from nnunet_ssl.data.whole_files import sync


@dataclass(frozen=True)
class UnlabeledPreprocessing:
    """One data set, one plans file, one configuration.

    Attributes:
        plans: nnU-Net's plans.
        configuration: for example "3d_fullres".
        dataset_json: nnU-Net's dataset.json.
        images: the folder `imagesUn`, in nnU-Net's naming (CASE_0000.nii.gz).
        preprocessed: where the cases go; `folder_of` gives it.
    """

    plans: dict
    configuration: str
    dataset_json: dict
    images: Path
    preprocessed: Path

    @property
    def command(self) -> str:
        """The command that preprocesses what is outdated, and tries again what could not be preprocessed."""
        names = (self.plans["dataset_name"], self.configuration, self.plans["plans_name"])
        return "nnunet_ssl preprocess -d {} -c {} -p {}".format(*map(quote, names))

    @property
    def files(self) -> PreprocessedFiles:
        """What compares the preprocessed files with their checksums."""
        index, stamped = state_folder(self.preprocessed) / "checksums.json", partial(checksums_of, self.preprocessed)
        return PreprocessedFiles(self.preprocessed, index, self.command, stamped)

    def image_files(self) -> dict[str, list[Path]]:
        """Return the files of each case, channels in order.

        Raises:
            ValueError: a file with the data set's ending is not named CASE_0000.
        """
        return unlabeled_images(self.images, self.dataset_json["file_ending"])

    def unused_files(self) -> str:
        """Return one sentence about what lies in `imagesUn` and is not used; empty if all is."""
        return unused_files(self.images, self.dataset_json["file_ending"])

    def outdated(
        self,
        cases: Iterable[str] | None = None,
        retry_problems: bool = False,
        stamps: Mapping[str, Stamp] | None = None,
    ) -> list[str]:
        """Return the cases that have to be preprocessed: new, changed, made with other settings, or not there any more.

        A preprocessed file that has another size than it had is not there any more.

        Args:
            cases: which cases to look at; None means all images.
            retry_problems: whether an unchanged image counts too that could not be preprocessed, or whose preprocessed
                files have been damaged since.
            stamps: of all cases, where they are read already.
        """
        files, settings = self.image_files(), self.settings()
        stamps = read_stamps(self.preprocessed) if stamps is None else stamps
        there = sizes_and_times(self.preprocessed)
        todo = []
        for case in files if cases is None else cases:
            stamp = stamps.get(case)
            if (
                stamp is None
                or stamp.settings != settings
                or not self._is_of(stamp, case, files[case])
                or any(name not in there or there[name][0] != size for name, size in stamp.sizes.items())
                or (retry_problems and (stamp.problem or self._is_damaged(case)))
            ):
                todo.append(case)
        return todo

    def run(
        self, num_processes: int, cases: Iterable[str] | None = None, retry_problems: bool = False, part: Part = WHOLE
    ) -> dict[str, str]:
        """Preprocess what is outdated and return what could not be: {case: reason}. One bad image stops no other.

        Safe to call from several processes at once: one works, the others wait and find the work done; parts go on at
        once. What is finished stays, however it ends.

        Args:
            num_processes: at once.
            cases: which cases to look at; None means all images.
            retry_problems: see `outdated`.
            part: of these cases, that is preprocessed here.

        Raises:
            RuntimeError: a worker process was killed, or another process works on that part.
        """
        cases, state = part.of(self.image_files() if cases is None else cases), state_folder(self.preprocessed)
        with preprocessing_alone(state, part):
            todo = self.outdated(cases, retry_problems)
            self.preprocessed.mkdir(parents=True, exist_ok=True)
            files = self.image_files()
            title = f"Preprocessing unlabeled cases ({self.configuration})"
            work, items = partial(_preprocess_case, self), [(case, files[case]) for case in todo]
            try:
                for _ in in_processes(work, items, num_processes, title):
                    pass
            finally:
                _remove_unfinished(state, part)
        stamps = read_stamps(self.preprocessed)  # which puts them into the index
        return {case: stamps[case].problem for case in cases if case in stamps and stamps[case].problem}

    def settings(self) -> dict[str, Any]:
        """Return all that decides the voxels of a preprocessed case, as json holds it."""
        plans = PlansManager(self.plans)
        configuration = plans.get_configuration(self.configuration)
        keys = ("spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name")
        resampling = ("resampling_fn_data", "resampling_fn_data_kwargs")
        return json.loads(
            json.dumps(
                {key: configuration.configuration[key] for key in (*keys, *resampling)}
                | {
                    "transpose_forward": plans.transpose_forward,
                    "image_reader_writer": self.plans["image_reader_writer"],
                    "intensity_properties": plans.foreground_intensity_properties_per_channel,
                    "channel_names": channel_names(self.dataset_json),
                }
            )
        )

    def _is_damaged(self, case: str) -> bool:
        try:
            self.files.check(case)
        except DamagedCaseError:
            return True
        return False

    def _is_of(self, stamp: "Stamp", case: str, files: list[Path]) -> bool:
        """Compare by name, size and time first; a file that was only touched is read, and its new time is kept."""
        try:
            files = with_sidecars(files)
            quick = [quick_mark(file) for file in files]
            if [mark[:3] for mark in stamp.files] == quick:
                return True
            if [mark[:2] for mark in stamp.files] != [mark[:2] for mark in quick]:
                return False
            marks = [mark_of(file) for file in files]
        except OSError:
            return False
        if [mark[3] for mark in marks] != [mark[3] for mark in stamp.files]:
            return False
        with suppress(OSError):  # a folder that is only read
            write_json_atomically(asdict(replace(stamp, files=marks)), stamp_file(self.preprocessed, case))
        return True


def forget_cases(preprocessed: Path, cases: Iterable[str]) -> None:
    """Delete what was preprocessed of cases that are not unlabeled any more.

    The stamp goes first, the image, which makes nnU-Net list a case, before the rest.
    """
    with preprocessing_alone(state_folder(preprocessed)):
        for case in cases:
            stamp_file(preprocessed, case).unlink(missing_ok=True)
            for name in (f"{case}.b2nd", f"{case}_seg.b2nd", f"{case}.pkl"):
                (preprocessed / name).unlink(missing_ok=True)


def _preprocess_case(job: UnlabeledPreprocessing, named: tuple[str, list[Path]]) -> None:
    """Preprocess one case, its name and files; what it becomes appears whole or not at all, and the stamp last."""
    case, files = named
    its_stamp = stamp_file(job.preprocessed, case)
    its_stamp.unlink(missing_ok=True)
    temporary = state_folder(job.preprocessed) / "unfinished" / case
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    sources = [HashedFile(file) for file in with_sidecars(files)]
    before: list[tuple[str, int, int]] = []
    try:
        before = [quick_mark(source.file) for source in sources]
        with naming(job.preprocessed / case, instead_of=temporary), blaming_the_disk(temporary):
            content, voxels = _preprocess_into(temporary, job, case, sources[: len(files)])
            for file in temporary.iterdir():
                sync(file)
        made = sorted(temporary.iterdir())
        checksums, sizes = {file.name: checksum_of(file) for file in made}, {f.name: f.stat().st_size for f in made}
        # The image last: its presence is what makes nnU-Net list a case.
        for file in sorted(made, key=lambda file: file.name == f"{case}.b2nd"):
            file.replace(job.preprocessed / file.name)
        stamp = Stamp(job.settings(), _marks(before, sources), content, checksums, sizes, voxels)
    except MemoryError as error:
        raise RuntimeError(
            f"{case} needs more memory than there is ({error}): try fewer processes (-np, or nnUNet_def_n_proc in a "
            "training), or take it out of imagesUn"
        ) from None
    except Exception as error:  # noqa: BLE001 - readers raise anything, and one bad image must not stop the others
        if fault_of_the_machine(error):
            raise
        problem = " ".join(str(error).split()) or type(error).__name__
        wrong_channel_count = isinstance(error, WrongChannelCountError)
        marks = _marks(before, sources)
        stamp = Stamp(job.settings(), marks, problem=problem, wrong_channel_count=wrong_channel_count)
    finally:
        for source in sources:
            source.close()
    shutil.rmtree(temporary)
    write_json_atomically(asdict(stamp), its_stamp)


def _marks(before: list[tuple[str, int, int]], sources: list[HashedFile]) -> list[Mark]:
    """Return what files were before they were read; nothing where one cannot be read, so that it is tried again."""
    try:
        return [(*mark, source.digest()) for mark, source in zip(before, sources, strict=False)]
    except OSError:
        return []


def _preprocess_into(
    folder: Path, job: UnlabeledPreprocessing, case: str, sources: list[HashedFile]
) -> tuple[Content, Content | None]:
    """Preprocess an image and return what it is after and before."""
    files = [source.file for source in sources]
    if problem := channel_problem(files, job.dataset_json):
        raise WrongChannelCountError(problem)
    plans = NotingPlans(job.plans)
    configuration = plans.get_configuration(job.configuration)
    refuse_unfit(files, plans, configuration, job.dataset_json)
    if not all(refuse_damaged(source.file, source) for source in sources):
        raise ValueError(NOT_FINITE)
    preprocessor = configuration.preprocessor_class(verbose=False)
    paths = [str(file) for file in files]
    try:
        preprocessor.run_case_save(str(folder / case), paths, None, plans, configuration, job.dataset_json)
    except (IndexError, KeyError, AssertionError, RuntimeError):  # nnU-Net's words for another number of channels
        refuse_unusable(DatasetReader.of_plans(job.plans).read_channels(files)[0], job.dataset_json)
        raise
    image = open_image(folder, case)[:]
    refuse_unusable(image, job.dataset_json)
    return content_of(image), plans.voxels


def _remove_unfinished(state: Path, part: Part) -> None:
    """Remove what workers that were ended, now or earlier, have left half-written of the cases of a part."""
    for folder in (state / "unfinished").glob("*"):
        if part.has(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    if part == WHOLE:  # other parts are still at work in it
        shutil.rmtree(state / "unfinished", ignore_errors=True)
    for stamp in state.glob("stamps/*.tmp"):
        if part.has(stamp.name.rpartition(".json.")[0]):
            stamp.unlink(missing_ok=True)
