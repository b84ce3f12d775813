"""Which classes occur in which case."""

import json
from pathlib import Path

import numpy as np
import SimpleITK
from tqdm import tqdm

from nnunet_ssl.data.image_files import read_image
from nnunet_ssl.splits.hiding import file_ending


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
