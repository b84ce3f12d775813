"""The cases of a raw data set: which there are, and which classes they hold."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from tqdm import tqdm

from nnunet_ssl.data.image_files import read_image
from nnunet_ssl.splits.hiding import file_ending


@dataclass(frozen=True)
class RawCases:
    """The ids of a raw data set's cases.

    Attributes:
        labeled: with a file in labelsTr.
        unlabeled: with images in imagesUn.
        hidden: with a label in labelsHidden; they are among the unlabeled.
        test: with images in imagesTs.
    """

    labeled: list[str]
    unlabeled: list[str]
    hidden: list[str]
    test: list[str]

    @classmethod
    def of(cls, dataset: Path) -> "RawCases":
        """List the folders of a data set."""
        ending = file_ending(dataset)
        folders = ("labelsTr", "imagesUn", "labelsHidden", "imagesTs")
        names = [{file.name.removesuffix(ending) for file in (dataset / name).glob(f"*{ending}")} for name in folders]
        for index in (1, 3):  # images: without the number of the channel
            names[index] = {name[:-5] for name in names[index]}
        return cls(*map(sorted, names))

    def all(self) -> list[str]:
        """Return all cases that can be in a split."""
        return sorted({*self.labeled, *self.unlabeled, *self.hidden})


def classes_of_cases(dataset: Path) -> dict[str, frozenset[int]]:
    """Return the label values, without background and ignore label, in every label file of a raw data set.

    Raises:
        ValueError: a label file is damaged.
    """
    ending = file_ending(dataset)
    no_class = {0, json.loads((dataset / "dataset.json").read_text())["labels"].get("ignore")}
    files = sorted((dataset / "labelsTr").glob(f"*{ending}"))
    classes = {}
    for file in tqdm(files, desc="Reading labels"):
        values = np.unique(SimpleITK.GetArrayFromImage(read_image(file)))
        classes[file.name.removesuffix(ending)] = frozenset(int(value) for value in values if value not in no_class)
    return classes
