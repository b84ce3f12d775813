"""Whether planning and preprocessing have seen labels that are hidden today."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote

from nnunet_ssl.data.dataset_names import planning_command
from nnunet_ssl.data.preprocessed_images import image_file, read_json
from nnunet_ssl.data.raw_files import RawDataset, some
from nnunet_ssl.leaks.leak import Leak
from nnunet_ssl.leaks.sides import UNLABELED, Fold

INTENSITIES = "foreground_intensity_properties_per_channel"


def leaks_of_planning(raw: RawDataset, preprocessed: Path, plans: str, folders: Sequence[Path]) -> Iterator[Leak]:
    """Give what was made while labels that are hidden today lay in labelsTr.

    Args:
        raw: the data set.
        preprocessed: its folder in nnUNet_preprocessed.
        plans: identifier of the plans.
        folders: where nnU-Net's preprocessed cases lie.
    """
    hidden, visible = raw.labels("labelsHidden"), raw.labels()
    secret = sorted(hidden.keys() - visible.keys())
    if not secret:
        return
    again = (
        f"{planning_command(raw.folder.name, plans)} --clean   # a fingerprint that is there is kept without --clean"
    )
    fingerprint = _dict(read_json(preprocessed / "dataset_fingerprint.json"))
    shapes = fingerprint.get("shapes_after_crop")
    if isinstance(shapes, list) and len(shapes) > len(visible):
        state = (
            f"made of {len(shapes)} labels, labelsTr has {len(visible)}: intensities and spacing are of hidden ones too"
        )
        yield Leak("fingerprint of hidden labels", state, again)
    else:
        planned = _dict(read_json(preprocessed / f"{plans}.json")).get(INTENSITIES)
        if planned and INTENSITIES in fingerprint and planned != fingerprint[INTENSITIES]:
            state = f"{plans} have other foreground intensities than dataset_fingerprint.json: it was made anew since"
            yield Leak("plans of hidden labels", state, again)
    for folder in folders:
        if seen := [case for case in secret if image_file(folder, case) is not None]:
            state = f"{len(seen)} hidden cases are preprocessed with their label: {some(seen)}"
            yield Leak(f"hidden labels in {folder.name}", state, again)
    references = preprocessed / "gt_segmentations"
    if seen := [case for case in secret if (references / f"{case}{raw.ending}").is_file()]:
        state = f"{len(seen)} hidden labels are among the references: {some(seen)}"
        yield Leak("hidden labels in gt_segmentations", state, f"rm -r {quote(str(references))} && {again}")


def visible_labels(folds: Sequence[Fold], raw: RawDataset) -> Iterator[Leak]:
    """Give the unlabeled cases of folds whose label lies in labelsTr: no training reads it, planning did."""
    unlabeled = {case for fold in folds for case in fold.sides[UNLABELED]}
    if seen := [case for case in raw.labels() if case in unlabeled]:
        state = f"{len(seen)} in labelsTr, which planning reads and no training: {some(seen)}"
        remedy = f"nnunet_ssl split {quote(raw.folder.name)} ... --hide --overwrite   # with the words of the split"
        yield Leak("labels of unlabeled cases", state, remedy, is_note=True)


def _dict(content: object) -> dict:
    return content if isinstance(content, dict) else {}
