"""nnU-Net's own preprocessed cases: which of them are whole, and one more beside them."""

import os
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import blosc2
import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.data.checksums import PreprocessedFiles
from nnunet_ssl.data.dataset_names import id_of
from nnunet_ssl.data.dataset_reader import refuse_unusable
from nnunet_ssl.data.disk_faults import blaming_the_disk, naming
from nnunet_ssl.data.image_bytes import in_plain_words
from nnunet_ssl.data.image_files import fault_of_the_machine
from nnunet_ssl.data.image_fit import refuse_unfit
from nnunet_ssl.data.preprocessed_images import open_image
from nnunet_ssl.data.raw_files import some
from nnunet_ssl.data.stamps import folder_of, state_folder
from nnunet_ssl.data.whole_files import sync

PICKLE_END = b"."  # the last byte of every pickle file
DAMAGE = (FileNotFoundError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile)


def unfinished_cases(folder: Path, cases: Iterable[str]) -> list[str]:
    """Return the cases whose preprocessing was interrupted: image, label or properties are missing or cut off.

    Only headers and ends of files are read.

    Args:
        folder: nnU-Net's preprocessed folder of one configuration, in any of its formats.
        cases: ids of labeled cases.
    """
    return [case for case in cases if not _is_whole(folder, case)]


def refuse_unfinished(folder: Path, cases: Iterable[str], dataset: str, plans: str, configuration: str) -> None:
    """Check that labeled cases are preprocessed.

    Args:
        folder: nnU-Net's preprocessed folder of the configuration.
        cases: that are needed.
        dataset: name of the data set, for the command that fixes it.
        plans: identifier of the plans, for the same.
        configuration: its name, for the same.

    Raises:
        ValueError: cases are missing or not whole.
    """
    if unfinished := unfinished_cases(folder, sorted(cases)):
        raise ValueError(
            f"{len(unfinished)} labeled cases are not, or not wholly, preprocessed in {folder}: {some(unfinished)}. "
            f"{preprocessing_command(dataset, plans, configuration)}"
        )


def refuse_missing(folder: Path, dataset: str, plans: str, configuration: str) -> None:
    """Raise a ValueError, with arguments as above, if nothing was preprocessed for the configuration."""
    if not folder.is_dir():
        command = preprocessing_command(dataset, plans, configuration)
        raise ValueError(f"the data set is not preprocessed for {configuration}: there is no {folder}. {command}")


def preprocessing_command(dataset: str, plans: str, configuration: str) -> str:
    """Return nnU-Net's command that preprocesses all labeled cases anew."""
    return f"nnUNetv2_preprocess -d {id_of(dataset)} -plans_name {quote(plans)} -c {quote(configuration)}"


def labeled_files(folder: Path, dataset: str, plans: str, configuration: str) -> PreprocessedFiles:
    """Return what compares the files of labeled cases with their checksums, which are made at first use.

    Args:
        folder: nnU-Net's preprocessed folder of the configuration.
        dataset: name of the data set.
        plans: identifier of the plans.
        configuration: its name.
    """
    index = state_folder(folder_of(folder.parent, folder.name)) / "labeled_checksums.json"
    return PreprocessedFiles(folder, index, preprocessing_command(dataset, plans, configuration))


def can_take_a_case(folder: Path) -> bool:
    """Return whether a preprocessed folder is of today's format, in which nnU-Net writes cases."""
    return any(folder.glob("*.b2nd")) and not any(folder.glob("*.np[yz]"))


@dataclass(frozen=True)
class LabeledPreprocessing:
    """Preprocessing of further labeled cases by nnU-Net's own function: all beside the folder first, then into it.

    Attributes:
        folder: nnU-Net's preprocessed folder of the configuration.
        plans: of the data set.
        configuration: its name.
        dataset_json: of the data set.
    """

    folder: Path
    plans: PlansManager
    configuration: str
    dataset_json: dict

    @property
    def beside(self) -> Path:
        """Where cases lie until they are taken over: nnU-Net takes its format from the folder's own listing."""
        return self.folder.with_name(f"{self.folder.name}_unfinished")

    def clear(self) -> None:
        """Remove what lies beside the folder."""
        shutil.rmtree(self.beside, ignore_errors=True)

    def prepare(self, case: str, images: Sequence[Path], label: Path) -> None:
        """Preprocess a case beside the folder.

        Args:
            case: its id.
            images: its files, channels in order.
            label: its label file.

        Raises:
            ValueError: it cannot be preprocessed, or nobody could learn from what it becomes.
        """
        settings = self.plans.get_configuration(self.configuration)
        preprocessor = settings.preprocessor_class(verbose=False)
        unfinished = self.beside / case
        unfinished.mkdir(parents=True)
        words = str(unfinished / case), [str(file) for file in images], str(label)
        try:
            refuse_unfit(images, self.plans, settings, self.dataset_json)
            with naming(self.folder / case, instead_of=unfinished), blaming_the_disk(unfinished):
                preprocessor.run_case_save(*words, self.plans, settings, self.dataset_json)
                refuse_unusable(open_image(unfinished, case)[:], self.dataset_json)
                for file in unfinished.iterdir():
                    sync(file)
        except Exception as error:
            if fault_of_the_machine(error):
                raise
            reason = in_plain_words(error) or type(error).__name__
            raise ValueError(f"{case} cannot be preprocessed for {self.configuration}: {reason}") from error

    def take_over(self, cases: Iterable[str]) -> None:
        """Move prepared cases into the folder, where what it has of them is replaced; each appears whole or not."""
        files = labeled_files(self.folder, self.plans.dataset_name, self.plans.plans_name, self.configuration)
        for case in cases:
            made = (self.beside / case).iterdir()
            for file in sorted(made, key=lambda file: file.name == f"{case}.b2nd"):  # which nnU-Net lists
                file.replace(self.folder / file.name)
            files.forget(case)
        self.clear()


def _is_whole(folder: Path, case: str) -> bool:
    try:
        return _has_properties(folder / f"{case}.pkl") and _has_image_and_label(folder, case)
    except DAMAGE:
        return False


def _has_properties(file: Path) -> bool:
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - len(PICKLE_END)))
        return opened.read() == PICKLE_END


def _has_image_and_label(folder: Path, case: str) -> bool:
    packed = folder / f"{case}.npz"
    if packed.exists():  # from which nnU-Net makes .npy, and makes them again where they are damaged
        with np.load(packed) as arrays:
            return {"data", "seg"} <= {*arrays.files}
    for name in (case, f"{case}_seg"):
        unpacked = folder / f"{name}.npy"
        if unpacked.exists():
            np.load(unpacked, mmap_mode="r")
        else:
            blosc2.open(urlpath=str(folder / f"{name}.b2nd"), mode="r")
    return True
