"""What the doctor says of leaks: by names, links and the audit's index. The verb audit reads the scans themselves."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_ssl.commands.audit import finding_of, findings_of_folds
from nnunet_ssl.commands.findings import Finding
from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.leaks.of_files import labels_beside_images
from nnunet_ssl.leaks.of_folds import Scans
from nnunet_ssl.leaks.of_planning import leaks_of_planning
from nnunet_ssl.leaks.of_training import unread_and_remedy
from nnunet_ssl.leaks.sides import folds_of

SAID_OF_CASES = ("a validation case in training", "a labeled case among the unlabeled", "validation")  # by split_checks
SAID_OF_PATIENTS = "a patient in training and in validation"  # the same, of a split that there is
SAID_OF_FILES = ("labels in imagesTr", "hidden labels beside images")  # by raw_checks


def check_leaks(raw: RawDataset, preprocessed: Path, plans: str, folders: Sequence[Path]) -> Iterator[Finding]:
    """Give what a training would see and should not; a problem where it would refuse to start.

    Args:
        raw: the data set.
        preprocessed: its folder in nnUNet_preprocessed.
        plans: identifier of the plans.
        folders: where nnU-Net's preprocessed cases lie.
    """
    for leak in (*labels_beside_images(raw), *leaks_of_planning(raw, preprocessed, plans, folders)):
        if leak.name not in SAID_OF_FILES:
            yield replace(finding_of(leak), is_problem=False)
    scans = Scans.of(raw, preprocessed)
    try:
        folds = folds_of(raw, preprocessed)
    except ValueError:  # a damaged split is named by split_checks
        return
    said = [*SAID_OF_CASES, *([SAID_OF_PATIENTS] if (preprocessed / "splits_final.json").exists() else [])]
    for finding in findings_of_folds(folds, raw, scans, only_stops=True):
        if finding.name.rpartition(", ")[2] not in said:
            yield finding
    if found := unread_and_remedy(scans):
        yield Finding("copies", *found)
