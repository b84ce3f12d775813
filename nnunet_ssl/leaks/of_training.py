"""What a training says of leaks when it starts: of names, links and the audit's index, without reading a voxel."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.data.trained_cases import TrainedCases
from nnunet_ssl.leaks.leak import Leak
from nnunet_ssl.leaks.of_files import labels_beside_images
from nnunet_ssl.leaks.of_folds import Scans, leaks_of_fold
from nnunet_ssl.leaks.of_planning import leaks_of_planning
from nnunet_ssl.leaks.sides import Fold


@dataclass(frozen=True)
class LookAtTraining:
    """Where the data of a training lie.

    Attributes:
        raw: its folder in nnUNet_raw, which need not be there.
        preprocessed: its folder in nnUNet_preprocessed.
        dataset_json: of the training.
        plans: identifier of the plans.
    """

    raw: Path
    preprocessed: Path
    dataset_json: Mapping[str, Any]
    plans: str

    def at(self, fold: int | str, cases: TrainedCases, labeled: Path) -> Iterator[str]:
        """Give lines for the log.

        Args:
            fold: that is trained.
            cases: of it.
            labeled: where nnU-Net's preprocessed cases lie.

        Raises:
            ValueError: what is unlabeled validates or tests the training.
        """
        raw = self._raw()
        scans = Scans.of(raw, self.preprocessed) if raw else None
        found = Fold.of(fold, cases.train, cases.val, cases.unlabeled, raw)
        leaks = [*leaks_of_fold(found, scans, self.preprocessed.name, self.dataset_json.get("patient_pattern"))]
        if raw:
            leaks += [*labels_beside_images(raw), *leaks_of_planning(raw, self.preprocessed, self.plans, [labeled])]
        for leak in leaks:
            if leak.stops_training:
                raise ValueError(sentence_of(leak))
        yield from (f"WARNING: {sentence_of(leak)}" for leak in leaks if not leak.is_note)
        if scans is not None and (line := not_compared(scans)):
            yield line

    def _raw(self) -> RawDataset | None:
        with suppress(ValueError, OSError):  # a training needs nothing of it but imagesUn
            if (self.raw / "dataset.json").is_file():
                raw = RawDataset.open(self.raw)
                raw.labels()  # which may lie where dataset.json says
                return raw
        return None


def sentence_of(leak: Leak) -> str:
    """Return a leak and its remedy in one line."""
    return f"{leak.name}: {leak.state}. {leak.remedy}"


def not_compared(scans: Scans) -> str:
    """Return how many scans no audit has compared, and what does; empty where that is none."""
    return ": ".join(unread_and_remedy(scans))


def unread_and_remedy(scans: Scans) -> tuple[str, str] | tuple[()]:
    """Return how many scans no audit has compared, and the command that does; nothing where that is none."""
    if not scans.unread:
        return ()
    of_all = f"{len(scans.unread)} of {len(scans.files)} scans"
    state = f"changed copies under other names were not looked for in {of_all}"
    return state, f"nnunet_ssl audit -d {quote(scans.dataset)}"
