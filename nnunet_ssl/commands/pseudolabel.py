"""Predict the unlabeled scans of a training, and rank them by which is most worth labeling next.

Writes one label file for each scan, and ranking.csv, the scan most worth labeling first: by the mean of its ranks in
entropy (mean over the predicted foreground and its border, a fraction of the largest possible one) and in disagreement
of the training's two networks (share of their foreground on which they differ). A scan in which nothing is predicted
comes first. confidence is the mean probability of the voxels predicted as a structure.
"""

import argparse
import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssl.commands.trained_models import add_device_argument, device_of, model_checkpoint

if TYPE_CHECKING:
    from nnunet_ssl.evaluation.label_priority import Uncertainty

RANKING = "ranking.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, as nnUNetv2_predict has them."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set: id or name")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: 3d_fullres")
    parser.add_argument("-tr", required=True, metavar="TRAINER")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("-f", default="0", metavar="FOLD", help="fold, or all (default: 0)")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: checkpoint_final.pth")
    add_device_argument(parser)
    parser.add_argument("-o", required=True, metavar="FOLDER", help="new or empty")


def run(options: argparse.Namespace) -> int:
    """Predict, write and rank."""
    from nnunet_ssl.commands.preprocess import check_environment

    check_environment()
    name, checkpoint = model_checkpoint(options)
    out = Path(options.o)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: name a new folder with -o")
    files = pool_files(name, options.f)

    import torch
    from tqdm import tqdm

    from nnunet_ssl.evaluation.pool_prediction import PoolPredictor

    predictor = PoolPredictor(checkpoint.parent.parent, options.f, options.chk, torch.device(device_of(options)))
    ending = predictor.predictor.dataset_json["file_ending"]
    out.mkdir(parents=True, exist_ok=True)
    uncertainties, volumes = {}, {}
    for case, prediction in tqdm(predictor.predict(files), total=len(files), desc="Predicting"):
        predictor.write(prediction, out / f"{case}{ending}")
        uncertainties[case], volumes[case] = prediction.uncertainty, prediction.volumes_ml
    order = write_ranking(out / RANKING, uncertainties, volumes)
    print(f"{len(files)} scans in {out}; most worth labeling next: {', '.join(order[:5])} (see {RANKING})")
    return 0


def pool_files(dataset: str, fold: str) -> dict[str, list[Path]]:
    """Return the image files of the fold's unlabeled cases, in imagesUn or, hidden labels aside, in imagesTr.

    Raises:
        ValueError: there are none, or a case has no image.
    """
    from nnunet_ssl.data.unlabeled_pool import unlabeled_cases_of_fold
    from nnunet_ssl.splits.hiding import file_ending, images_of
    from nnunet_ssl.splits.raw_cases import RawCases

    raw = Path(os.environ["nnUNet_raw"], dataset)
    splits = Path(os.environ["nnUNet_preprocessed"], dataset, "splits_final.json")
    named = unlabeled_cases_of_fold(splits, fold if fold == "all" else int(fold))
    cases = RawCases.of(raw).unlabeled if named is None else named
    if not cases:
        raise ValueError(f"there are no unlabeled images in {raw / 'imagesUn'}, and the split names none")
    ending = file_ending(raw)
    files = {
        case: images_of(raw / "imagesUn", case, ending) or images_of(raw / "imagesTr", case, ending) for case in cases
    }
    missing = [case for case, images in files.items() if not images]
    if missing:
        raise ValueError(f"the unlabeled case {missing[0]} has no image in {raw / 'imagesUn'} or {raw / 'imagesTr'}")
    return files


def write_ranking(
    file: Path, uncertainties: dict[str, "Uncertainty"], volumes: dict[str, dict[str, float]]
) -> list[str]:
    """Write the ranking and return the cases in its order."""
    from nnunet_ssl.evaluation.label_priority import priority

    order = priority(uncertainties)
    structures = list(next(iter(volumes.values())))
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        columns = [f"{kind}_{name}" for name in structures for kind in ("confidence", "volume_ml")]
        writer.writerow(["rank", "case", "entropy", "disagreement", *columns])
        for rank, case in enumerate(order, start=1):
            found = uncertainties[case]
            values = [value for name in structures for value in (found.confidence[name], volumes[case][name])]
            writer.writerow([rank, case, *(f"{v:.6g}" for v in (found.entropy, found.disagreement, *values))])
    return order
