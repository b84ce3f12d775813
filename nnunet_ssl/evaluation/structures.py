"""What is compared in label files: values or regions, by name, as dataset.json or the files themselves say."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nnunet_ssl.data.dataset_reader import DatasetReader, Voxels, ending_in
from nnunet_ssl.data.in_processes import in_processes
from nnunet_ssl.data.raw_files import files_in, read_dataset_json


@dataclass(frozen=True)
class Structures:
    """What is compared: label values, or regions of several values, by name.

    Attributes:
        values: the values of each structure.
        ending: of the files.
        reader: of the files.
        ignore: the value of voxels that are compared in no structure; None for none.
        known: all values that may occur; None where the files themselves were asked.
    """

    values: dict[str, tuple[int, ...]]
    ending: str
    reader: DatasetReader
    ignore: int | None = None
    known: frozenset[int] | None = None

    @classmethod
    def of_dataset(cls, dataset_json: Path, plans: dict | None = None, examples: Path | None = None) -> "Structures":
        """Read labels or regions from nnU-Net's dataset.json.

        Args:
            dataset_json: the file.
            plans: nnU-Net's plans, which name the reader; without them dataset.json chooses it.
            examples: a folder of label files, one of which is looked at where the ending alone chooses no reader.
        """
        content = read_dataset_json(dataset_json)
        labels = dict(content["labels"])
        ignore = labels.pop("ignore", None)
        values = {name: tuple(v) if isinstance(v, list) else (v,) for name, v in labels.items()}
        known = frozenset(value for group in values.values() for value in group) | {0}
        if plans is not None:
            reader = DatasetReader.of_plans(plans)
        else:
            files = files_in(examples, content["file_ending"]) if examples is not None else []
            reader = DatasetReader.of_dataset(content, files)
        values = {name: v for name, v in values.items() if v != (0,)}
        return cls(values, content["file_ending"], reader, ignore, known | ({ignore} - {None}))

    def read_labels(self, file: Path) -> Voxels:
        """Read a label file.

        Raises:
            ValueError: it is damaged, holds a value that is no whole number, or one that dataset.json does not know.
        """
        labels = self.reader.read_labels(file)
        if self.known is not None:
            unknown = sorted(set(np.unique(labels.array).tolist()) - self.known)
            if unknown:
                known = ", ".join(map(str, sorted(self.known)))
                raise ValueError(f"{file} holds the value {unknown[0]}, dataset.json knows only {known}")
        return labels


def structures_found_in(
    references: Path, predictions: Path, cases: Sequence[str] | None = None, num_processes: int = 2
) -> tuple[Structures, str]:
    """Take every value above 0 that occurs in the files for a structure, and say what is odd about them.

    Raises:
        ValueError: the files have no ending that nnU-Net reads, or several; a value is no whole number; no value is in
            both references and predictions.
    """
    ending = ending_in(references, "reference")
    all_references = files_in(references, ending)
    reader = DatasetReader.of_dataset({"file_ending": ending}, all_references)
    names = [file.name for file in all_references] if cases is None else [f"{case}{ending}" for case in cases]
    files = [folder / name for folder in (references, predictions) for name in names if (folder / name).is_file()]
    values = in_processes(partial(values_in, reader), files, num_processes, "Reading labels")
    found = dict(zip(files, values, strict=True))
    sides = [
        {value: file for file in reversed(files) if file.parent == folder for value in found[file]}
        for folder in (references, predictions)
    ]
    if sides[0] and sides[1] and not sides[0].keys() & sides[1].keys():
        examples = [f"{max(side)} in {side[max(side)]}" for side in sides]
        raise ValueError(
            f"references and predictions have no value in common but 0, for example {examples[0]} and {examples[1]}: "
            "give both the same values"
        )
    values = sorted({*sides[0], *sides[1]})
    if not values:
        raise ValueError(f"the label files of {references} and {predictions} hold nothing but 0")
    extra = sorted(sides[1].keys() - sides[0].keys())
    note = ", ".join(f"{value} ({sides[1][value].name})" for value in extra)
    note = f"predictions hold values that no reference has: {note}" if extra else ""
    return Structures({str(value): (value,) for value in values}, ending, reader), note


def values_in(reader: DatasetReader, file: Path) -> list[int]:
    """Return the values of a label file but 0."""
    return [value for value in np.unique(reader.read_labels(file).array).tolist() if value]
