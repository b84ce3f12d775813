"""Preprocessing of unlabeled images with the plans of the labeled data set.

`nnUNet_raw/DatasetXXX/imagesUn` goes to `nnUNet_preprocessed/DatasetXXX/<data_identifier>_unlabeled`. Stamps, lock and
temporary files lie in a folder beside it, because nnU-Net infers format and cases from a folder's listing.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.data.checksums import DamagedCaseError, PreprocessedFiles
from nnunet_ssl.data.in_processes import in_processes
from nnunet_ssl.data.locks import WHOLE, Part, one_after_the_other, preprocessing_alone
from nnunet_ssl.data.one_case import preprocess_case, remove_unfinished
from nnunet_ssl.data.pool_index import read_stamps, sizes_and_times
from nnunet_ssl.data.preprocessed_images import write_json_atomically
from nnunet_ssl.data.raw_files import channel_names, unlabeled_images, unused_files, with_sidecars
from nnunet_ssl.data.stamps import Stamp, checksums_of, mark_of, quick_mark, read_stamp, stamp_file, state_folder


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
            work, items = partial(preprocess_case, self), [(case, files[case]) for case in todo]
            try:
                for _ in in_processes(work, items, num_processes, title):
                    pass
            finally:
                remove_unfinished(state, part)
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

    def _is_of(self, stamp: Stamp, case: str, files: list[Path]) -> bool:
        """Compare by name, size and time first; a file that was only touched is read, and its new time is kept."""
        try:
            files = with_sidecars(files)
            quick = [quick_mark(file) for file in files]
            if [mark[:3] for mark in stamp.files] == quick:
                return True
            if [mark[:2] for mark in stamp.files] != [mark[:2] for mark in quick]:
                return False
            with one_after_the_other(state_folder(self.preprocessed) / "touched.lock", "reads touched images"):
                return self._is_content_of(case, files, quick)
        except OSError:
            return False

    def _is_content_of(self, case: str, files: list[Path], quick: list[tuple[str, int, int]]) -> bool:
        stamp = read_stamp(self.preprocessed, case)
        if stamp is None:
            return False
        if [mark[:3] for mark in stamp.files] == quick:  # another process has read them meanwhile
            return True
        marks = [mark_of(file) for file in files]
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
