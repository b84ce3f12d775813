"""Preprocessing of one unlabeled case: what it becomes appears whole or not at all, and its stamp last."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssl.data.checksums import checksum_of
from nnunet_ssl.data.dataset_reader import NOT_FINITE, DatasetReader, WrongChannelCountError, refuse_unusable
from nnunet_ssl.data.disk_faults import blaming_the_disk, naming
from nnunet_ssl.data.hashed_files import HashedFile
from nnunet_ssl.data.image_files import fault_of_the_machine, refuse_damaged
from nnunet_ssl.data.image_fit import refuse_unfit
from nnunet_ssl.data.locks import WHOLE, Part
from nnunet_ssl.data.noted_voxels import NotingPlans
from nnunet_ssl.data.preprocessed_images import Content, content_of, open_image, write_json_atomically
from nnunet_ssl.data.raw_files import channel_problem, with_sidecars
from nnunet_ssl.data.stamps import Mark, Stamp, quick_mark, stamp_file, state_folder
from nnunet_ssl.data.whole_files import sync

if TYPE_CHECKING:
    from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing


def preprocess_case(job: "UnlabeledPreprocessing", named: tuple[str, list[Path]]) -> None:
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
    folder: Path, job: "UnlabeledPreprocessing", case: str, sources: list[HashedFile]
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


def remove_unfinished(state: Path, part: Part) -> None:
    """Remove what workers that were ended, now or earlier, have left half-written of the cases of a part."""
    for folder in (state / "unfinished").glob("*"):
        if part.has(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    if part == WHOLE:  # other parts are still at work in it
        shutil.rmtree(state / "unfinished", ignore_errors=True)
    for stamp in state.glob("stamps/*.tmp"):
        if part.has(stamp.name.rpartition(".json.")[0]):
            stamp.unlink(missing_ok=True)
