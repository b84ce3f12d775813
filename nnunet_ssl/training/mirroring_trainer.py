"""nnU-Net's trainer, which need not mirror where that hides what a thing is."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.data.checksums import CheckedDataset, PreprocessedFiles
from nnunet_ssl.data.orientation import overlap_of_mirrored, turned_over
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset
from nnunet_ssl.data.split_file import KEY, read_splits
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing
from nnunet_ssl.training import distributed
from nnunet_ssl.training.checkpoints import checkpoints_of
from nnunet_ssl.training.mirrored_folds import different_axes, how_to_predict, mirrored_axes

ALL, AUTO, NONE = "all", "auto", "none"
LARGEST_ROTATION = np.pi / 12  # nnU-Net's own of 2-D patches that are much longer than wide
LARGEST_SAMPLE = 50  # of the images that are compared; ours
LEAST_IMAGES = 10  # fewer say too little; ours
LARGEST_ODD_SHARE = 0.05  # of these that may lie another way; ours, see turned_over
LEAST_LABELS = 2  # that can be compared
LEAST_OVERLAP = 0.8  # of mirrored labels, from which on mirroring hides nothing; ours, see overlap_of_mirrored


class MirroringTrainer(nnUNetTrainer):
    """Mirrors, if so asked, only where it hides nothing: elsewhere the place says what a thing is.

    The axes are the run's, in training and prediction, and stand in its checkpoints as nnU-Net's do.
    """

    mirroring = ALL  # along all of nnU-Net's axes; auto: those along which images lie both ways, or labels alike; none
    was_resumed: bool
    _preprocessing: UnlabeledPreprocessing
    _labeled_files: PreprocessedFiles

    def initialize(self) -> None:
        """Initialise as nnU-Net does, unless `mirroring` is another word."""
        if self.mirroring not in (ALL, AUTO, NONE):
            raise ValueError(f"mirroring is {ALL}, {AUTO} or {NONE}, got {self.mirroring!r}")
        super().initialize()

    def images_of_all_cases(self) -> UnlabeledDataset:
        """Return the preprocessed images of all cases, labeled or not: the same in each fold, and so are the axes."""
        both = Path(self.preprocessed_dataset_folder), self._preprocessing.preprocessed
        cases_in = infer_dataset_class(self.preprocessed_dataset_folder).get_identifiers
        return self._images_in({case: one for one in both if one.is_dir() for case in cases_in(str(one))})

    def _images_in(self, folders: dict[str, Path]) -> UnlabeledDataset:
        raise NotImplementedError

    def labels_of_all_folds(self) -> Iterator[np.ndarray]:
        """Yield labels that some fold trains on, and none hides: of the same cases in each fold.

        Where folds hide each other's labels, so that fewer than two are left, those that this fold trains on.
        """
        folder = self.preprocessed_dataset_folder
        file = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
        there, trained = {*infer_dataset_class(folder).get_identifiers(folder)}, set()
        if self.fold != "all" and file.exists():
            folds = read_splits(file)
            trained = there.intersection(case for fold in folds for case in fold["train"])
            trained -= {case for fold in folds for case in fold.get(KEY, ())}
        if len(trained) < LEAST_LABELS:
            trained = there.intersection(self.do_split()[0])
        cases = _spread(trained)
        dataset = CheckedDataset(infer_dataset_class(folder)(folder, cases), self._labeled_files)
        for case in cases:
            yield dataset.load_case(case)[1][0]

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:  # noqa: N802 - nnU-Net's name
        """Return rotation, dummy 2-D augmentation, initial patch size, and the axes of mirroring.

        Where nnU-Net rotates to all sides, in the plane of the last two axes, and one of these is not mirrored along,
        it is by up to 15 degrees: turned upside down is mirrored twice.
        """
        axes_of_run = self.inference_allowed_mirroring_axes
        rotation, dummy_2d, initial_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        axes = tuple(axes or ())  # variants of nnU-Net's trainer have none, or some
        kept, dim = self._axes_to_mirror(axes, axes_of_run), len(self.configuration_manager.patch_size)
        if max(rotation) > np.pi / 2 and {dim - 2, dim - 1} & ({*axes} - {*kept}):
            rotation = (-LARGEST_ROTATION, LARGEST_ROTATION)
        self.inference_allowed_mirroring_axes = kept or None
        self._say_difference_of_folds(kept)
        return rotation, dummy_2d, initial_size, self.inference_allowed_mirroring_axes

    def _say_difference_of_folds(self, kept: tuple[int, ...]) -> None:
        """Warn where another fold of this model is mirrored otherwise."""
        axes = {}
        for folder in Path(self.output_folder).parent.glob("fold_[0-9]*"):
            if (its_axes := mirrored_axes(checkpoints_of(folder))) is not None:
                axes[folder.name.removeprefix("fold_")] = its_axes
        axes[str(self.fold)] = kept
        if self.fold != "all" and (differ := different_axes(axes)):
            self.print_to_log_file(f"WARNING: {differ}. {how_to_predict(axes)}")

    def _axes_to_mirror(self, axes: Sequence[int], axes_of_run: Sequence[int] | None) -> tuple[int, ...]:
        if self.mirroring == ALL or not axes:
            return tuple(axes)
        if self.was_resumed:
            return tuple(axes_of_run or ())
        return self._open_axes(axes) if self.mirroring == AUTO else ()

    def _open_axes(self, axes: Sequence[int]) -> tuple[int, ...]:
        """Return those of the patch's axes along which mirroring hides nothing, or may; and say it in the log."""
        images = self.images_of_all_cases()
        cases = _spread(images.identifiers)
        if len(cases) < LEAST_IMAGES:
            self.print_to_log_file(f"Mirroring along all axes: {len(cases)} scans say too little")
            return tuple(axes)
        self.print_to_log_file(f"Mirroring: {len(cases)} scans are compared")
        first = 3 - len(self.configuration_manager.patch_size)  # the axis of the image that is the patch's first
        turned, overlap = None, {}
        if self.local_rank == 0:
            turned = turned_over(self._first_channels(images, cases), [first + axis for axis in axes])
            if alike := [axis for axis, number in turned.items() if number <= LARGEST_ODD_SHARE * len(cases)]:
                foreground = [label for label in self.label_manager.all_labels if label != 0]
                overlap = overlap_of_mirrored(self.labels_of_all_folds(), foreground, alike)
        turned, overlap = distributed.of_first_process((turned, overlap))
        kept = tuple(axis for axis in axes if overlap.get(first + axis, 1.0) >= LEAST_OVERLAP)
        along = f"axes {', '.join(map(str, kept))}" if kept else "no axis"
        found = ", ".join(f"{turned[first + axis]} along axis {axis}" for axis in axes)
        labels = _words_of({axis: overlap[first + axis] for axis in axes if first + axis in overlap})
        self.print_to_log_file(f"Mirroring along {along}: of {len(cases)} scans lie another way {found}{labels}")
        return kept

    def _first_channels(self, images: UnlabeledDataset, cases: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield the images that can be read: those of other folds need not be whole for this one to train."""
        for case in cases:
            try:
                yield images.load_case(case)[0][0]
            except (OSError, RuntimeError, ValueError) as error:
                self.print_to_log_file(f"WARNING: {case} cannot be read, and is not compared: {error}")


def _words_of(overlap: Mapping[int, float]) -> str:
    """Return what the log says of how labels overlap with mirrored ones, by axis; nothing of none."""
    if not overlap:
        return ""
    if np.isnan([*overlap.values()]).any():
        return "; fewer than two cases have labels that could be compared"
    shares = ", ".join(f"{share:.2f} along axis {axis}" for axis, share in overlap.items())
    return f"; labels overlap with mirrored ones, by what they do otherwise: {shares}"


def _spread(cases: Collection[str]) -> list[str]:
    """Return some of the cases, at equal distances in the order of their names; of none none."""
    number = min(len(cases), LARGEST_SAMPLE)
    return [sorted(cases)[i] for i in np.linspace(0, len(cases) - 1, number).round().astype(int)]
