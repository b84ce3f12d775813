"""The cases of a raw data set: which there are, and which classes they hold."""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.raw_files import RawDataset, some, unlabeled_images


@dataclass(frozen=True)
class RawCases:
    """The ids of a raw data set's cases.

    Attributes:
        labeled: with a file in labelsTr.
        unlabeled: with images in imagesUn.
        hidden: with a label in labelsHidden.
        test: with images in imagesTs.
    """

    labeled: list[str]
    unlabeled: list[str]
    hidden: list[str]
    test: list[str]

    @classmethod
    def of(cls, raw: RawDataset) -> "RawCases":
        """List the folders of a data set.

        Raises:
            ValueError: a file of imagesUn is not named as a channel of a case, or a case has other channels.
        """
        labels, hidden = raw.labels(), raw.labels("labelsHidden")
        unlabeled = unlabeled_images(raw.folder / "imagesUn", raw.ending)
        # The files of a hidden case may be on their way.
        foreign = {case: files for case, files in unlabeled.items() if case not in hidden}
        found = {case: raw.channel_problem(files) for case, files in foreign.items()}
        problems = [f"{case}: {problem}" for case, problem in found.items() if problem]
        if problems:
            raise ValueError(f"imagesUn holds cases that do not fit the data set: {some(problems, most=2)}")
        return cls(*map(sorted, (labels, unlabeled, hidden, raw.images("imagesTs"))))

    @property
    def with_label(self) -> list[str]:
        """The cases that have a label, hidden or not."""
        return sorted({*self.labeled, *self.hidden})

    def all(self) -> list[str]:
        """Return all cases that can be in a split."""
        return sorted({*self.labeled, *self.unlabeled, *self.hidden})


def classes_of_cases(raw: RawDataset) -> dict[str, frozenset[int]]:
    """Return the label values, without background and ignore label, in every label file, hidden or not.

    Raises:
        ValueError: a label file is damaged, or holds a value that is no whole number.
    """
    no_class = {0, raw.dataset_json["labels"].get("ignore")}
    files = raw.labels("labelsHidden") | raw.labels()
    reader = DatasetReader.of_raw(raw)
    classes = {}
    for case, file in tqdm(sorted(files.items()), desc="Reading labels"):
        values = np.unique(reader.read_labels(file).array).tolist()
        classes[case] = frozenset(value for value in values if value not in no_class)
    return classes
