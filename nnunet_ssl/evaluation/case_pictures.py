"""Which cases a report shows, and with what beside them."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.evaluation.comparison import Comparison, Prediction
from nnunet_ssl.evaluation.previews import chosen_cases, draw_case
from nnunet_ssl.evaluation.report import Picture, encoded
from nnunet_ssl.evaluation.structures import Structures

# Where the images of references lie: of validation cases, of test cases, and of those of another folder.
PLACES = {"gt_segmentations": ("imagesTr", "imagesUn"), "labelsTs": ("imagesTs",)}
ANYWHERE = ("imagesTs", "imagesUn", "imagesTr")


def previews(
    comparison: Comparison,
    files: Mapping[str, Mapping[Prediction, Path]],
    references: Path,
    raw: Path,
    structures: Structures,
) -> dict[str, Callable[[], Picture]]:
    """Return what draws the worst, median and best case of each trainer, beside the baseline, by title."""
    dice = {trainer: comparison.dice(trainer) for trainer in comparison.results}
    figures = {}
    for trainer in comparison.results:
        named = {str(prediction): prediction for prediction in comparison.shown(trainer)}
        for which, case in chosen_cases({case: dice[trainer][key] for case, key in named.items()}).items():
            prediction = named[case]
            layers = {
                f"{name}\nDice {dice[name][prediction]:.3f}": files[name][prediction]
                for name in dict.fromkeys((comparison.baseline, trainer))
                if prediction in files[name]
            }
            title = f"{trainer}: {which} case, {case}"
            figures[title] = partial(preview, title, layers, references, raw, structures)
    return figures


def preview(
    title: str, predictions: Mapping[str, Path], references: Path, raw: Path, structures: Structures
) -> Picture:
    """Draw a case: image, reference and predictions.

    Raises:
        ValueError: there is no image, or a file cannot be read.
    """
    file_name = next(iter(predictions.values())).name
    places = PLACES.get(references.name, ANYWHERE)
    files = RawDataset.open(raw).image_of(file_name.removesuffix(structures.ending), places)
    if not files:
        raise ValueError(f"its image is not in {raw}")
    image = structures.reader.read_image(files[0])
    layers = {"reference": references / file_name} | predictions
    labels = {name: structures.reader.read_labels(path).array for name, path in layers.items()}
    names = {value[0]: name for name, value in structures.values.items() if len(value) == 1}
    figure = draw_case(image.array, labels, image.spacing, names, "mm" if image.has_spacing else "voxels")
    return Picture(title, encoded(figure), "")
