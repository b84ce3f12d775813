"""Predict the unlabeled scans of a training, and rank them by how uncertain the model is about them.

Writes one label file for each scan, and ranking.csv, the most uncertain scan first: by the mean of its ranks in entropy
(mean over the predicted foreground and its border, a fraction of the largest possible one) and in disagreement of the
training's two networks (share of their foreground on which they differ). A scan in which nothing is predicted comes
first. confidence is the mean probability of the voxels predicted as a structure. Whether labeling the most uncertain
scans helps more than labeling others has not been measured.

With --as-dataset 127 the labeled cases of the fold and the scans with their pseudo-labels become a data set of their
own, Dataset127_NAME_Pseudolabeled, on which plain nnU-Net trains. Its fold 0 validates on the cases of the original's
fold, with their true labels. --accept takes only the scans that the model is surest about, by the ranking; one in which
nothing is predicted is never taken. origin.json in it says of each case whether its label is true or predicted, by
which model, and how uncertain it was. Of such a data set its pseudo-labeled cases are predicted again.

A scan that trainings leave out (damaged, of other channels) is left out here too and named at the end, with exit code
1. Interrupted, the same command goes on where it stopped.
"""

import argparse
import csv
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ssl.commands.as_dataset import new_dataset
from nnunet_ssl.commands.outputs import output_folder
from nnunet_ssl.commands.trained_models import add_device_argument, device_of, model_checkpoint

if TYPE_CHECKING:
    from nnunet_ssl.evaluation.label_priority import Uncertainty

RANKING, FINISHED = "ranking.csv", "finished.jsonl"


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
    parser.add_argument("-o", required=True, metavar="FOLDER", help="new or empty, or what this command left there")
    parser.add_argument("--as-dataset", type=int, metavar="ID", help="write a data set for plain nnU-Net, of this id")
    parser.add_argument(
        "--accept", metavar="N|P%", help="with --as-dataset: the surest scans, so many or such a share (default: 100%%)"
    )


def run(options: argparse.Namespace) -> int:
    """Predict, write and rank; return 1 if a scan was left out."""
    from nnunet_ssl.commands.preprocess import check_environment

    check_environment()
    name, checkpoint = model_checkpoint(options)
    files, unused = pool_files(name, options.f)
    folder = output_folder(options.o)
    dataset = new_dataset(options, name, checkpoint, files)

    import torch
    from tqdm import tqdm

    from nnunet_ssl.data.older_conversions import older_conversion
    from nnunet_ssl.evaluation.pool_prediction import PoolPredictor

    predictor = PoolPredictor(checkpoint.parent.parent, options.f, options.chk, torch.device(device_of(options)))
    finished = Finished.open(folder, checkpoint, files)
    ending = predictor.predictor.dataset_json["file_ending"]
    finished.forget_what_is_gone(ending)
    problems = {}
    todo = [case for case in files if case not in finished.cases]
    if finished.cases:
        print(f"{len(finished.cases)} of {len(files)} scans are done already in {options.o}")
    for case in tqdm(todo, desc="Predicting"):
        try:
            prediction = predictor.predict(files[case])
        except ValueError as error:
            problems[case] = " ".join(str(error).split())
            continue
        predictor.write(prediction, finished.folder / f"{case}{ending}")
        finished.add(case, prediction.uncertainty, prediction.volumes_ml)
    order = finished.write_ranking()
    print(f"{len(order)} scans in {options.o}; most uncertain: {', '.join(order[:5]) or 'none'} (see {RANKING})")
    for sentence in filter(None, (unused, older_conversion(predictor.predictor.dataset_json))):
        print(sentence)
    print(*(f"left out, {case}: {why}" for case, why in problems.items()), sep="\n", end="\n" if problems else "")
    if dataset is not None:
        dataset.write(finished.folder, files, {case: finished.uncertainty(case) for case in order})
        print(*dataset.next_commands(options.p, options.c), sep="\n")
    return 1 if problems else 0


def pool_files(dataset: str, fold: str) -> tuple[dict[str, list[Path]], str]:
    """Return the image files of the fold's unlabeled cases, and one sentence about what imagesUn holds besides.

    They lie in imagesUn or, hidden labels aside, where the training cases lie. Where there is no imagesUn, those of a
    data set of pseudo-labels are the cases with a predicted label.

    Raises:
        ValueError: there are none, or a case has no image.
    """
    from nnunet_ssl.conversion.pseudolabeled_dataset import predicted_before
    from nnunet_ssl.data.raw_files import RawDataset, some, unlabeled_images, unused_files
    from nnunet_ssl.data.split_file import unlabeled_cases_of_fold

    raw = RawDataset.open(Path(os.environ["nnUNet_raw"], dataset))
    splits = Path(os.environ["nnUNet_preprocessed"], dataset, "splits_final.json")
    named = unlabeled_cases_of_fold(splits, fold if fold == "all" else int(fold))
    images = unlabeled_images(raw.folder / "imagesUn", raw.ending)
    unused = unused_files(raw.folder / "imagesUn", raw.ending)
    cases = sorted(images or predicted_before(raw)) if named is None else named
    if not cases:
        raise ValueError(
            f"there are no unlabeled images in {raw.folder / 'imagesUn'}, and the split names none. {unused}"
        )
    everywhere = raw.images("imagesTr") | images
    if missing := [case for case in cases if case not in everywhere]:
        places = "imagesUn or where the training images lie" if raw.lies_elsewhere else "imagesUn or imagesTr"
        raise ValueError(f"unlabeled cases have no image in {raw.folder}, {places}: {some(missing)}")
    return {case: everywhere[case] for case in cases}, unused


class Finished:
    """What is done already, one line for each scan in a file beside the predictions, so that nothing is done twice."""

    def __init__(self, folder: Path, files: dict[str, list[Path]], cases: dict[str, dict]) -> None:
        """Take the folder, the image files of each scan of the pool, and what an earlier call has noted of scans."""
        self.folder = folder
        self.files = files
        self.cases = cases

    @classmethod
    def open(cls, folder: Path, checkpoint: Path, files: dict[str, list[Path]]) -> "Finished":
        """Read what an earlier call has left in a folder, or make the folder.

        Raises:
            ValueError: the folder holds something else, or predictions of another model.
        """
        from nnunet_ssl.data.json_schemas import Predicted, parsed, refuse_unfit
        from nnunet_ssl.data.whole_files import replacing

        model = [checkpoint.parent.parent.name, checkpoint.parent.name, checkpoint.name, *marks([checkpoint])]
        file = folder / FINISHED
        if not file.is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ValueError(f"{folder} is not empty: name a new folder with -o")
            with replacing(file) as unfinished:
                unfinished.write_text(json.dumps(model) + "\n")
            return cls(folder, files, {})
        lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        try:
            entries = [parsed(line) for line in lines]
            for number, entry in enumerate(entries[1:], start=2):
                refuse_unfit(entry, Predicted, f"line {number}")
        except ValueError as error:
            raise ValueError(f"{file} is damaged: name a new folder with -o ({error})") from None
        if entries[:1] != [model]:
            raise ValueError(f"{folder} holds the predictions of another model: name a new folder with -o")
        with replacing(file) as unfinished:
            unfinished.write_text("".join(lines))  # without half a line, after a power cut or on a full disk
        return cls(folder, files, {entry["case"]: entry for entry in entries[1:]})

    def forget_what_is_gone(self, ending: str) -> None:
        """Let scans that have changed or left the pool, or whose label file is missing, count as not done.

        What was predicted for them is deleted.
        """
        for case, entry in list(self.cases.items()):
            labels = self.folder / f"{case}{ending}"
            is_same = case in self.files and entry["marks"] == marks(self.files[case])
            if not is_same:
                labels.unlink(missing_ok=True)
            if not is_same or not labels.is_file():
                del self.cases[case]

    def add(self, case: str, uncertainty: "Uncertainty", volumes_ml: dict[str, float]) -> None:
        """Note that a scan is done."""
        from nnunet_ssl.data.disk_faults import naming

        measured = {"uncertainty": asdict(uncertainty), "volumes_ml": volumes_ml}
        self.cases[case] = {"case": case, "marks": marks(self.files[case]), **measured}
        file = self.folder / FINISHED
        size = file.stat().st_size
        try:
            with naming(file), file.open("a") as opened:
                opened.write(json.dumps(self.cases[case]) + "\n")
        except OSError:
            os.truncate(file, size)
            raise

    def uncertainty(self, case: str) -> "Uncertainty":
        """Return what was measured of a scan that is done."""
        from nnunet_ssl.evaluation.label_priority import Uncertainty

        return Uncertainty(**self.cases[case]["uncertainty"])

    def write_ranking(self) -> list[str]:
        """Write the ranking of what is done and return the cases in its order."""
        from nnunet_ssl.data.whole_files import replacing
        from nnunet_ssl.evaluation.cells import csv_row
        from nnunet_ssl.evaluation.label_priority import priority

        found = {case: self.uncertainty(case) for case in self.files if case in self.cases}
        order = priority(found)
        with replacing(self.folder / RANKING) as unfinished, unfinished.open("w", newline="") as opened:
            writer = csv.writer(opened)
            structures = list(self.cases[order[0]]["volumes_ml"]) if order else []
            columns = [f"{kind}_{name}" for name in structures for kind in ("confidence", "volume_ml")]
            writer.writerow(["rank", "case", "entropy", "disagreement", *columns])
            for rank, case in enumerate(order, start=1):
                one, volumes = found[case], self.cases[case]["volumes_ml"]
                values = [value for name in structures for value in (one.confidence[name], volumes[name])]
                numbers = [f"{value:.6g}" for value in (one.entropy, one.disagreement, *values)]
                writer.writerow(csv_row([rank, case, *numbers]))
        return order


def marks(files: list[Path]) -> list[Any]:
    """Return what tells whether files have changed: size in bytes and time of change in ns of each."""
    return [[file.stat().st_size, file.stat().st_mtime_ns] if file.exists() else None for file in files]
