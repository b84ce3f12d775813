"""Predict the unlabeled scans of a training, and rank them by how uncertain the model is about them.

Writes one label file for each scan, and ranking.csv, the most uncertain scan first: by the mean of its ranks in entropy
(mean over the predicted foreground and its border, a fraction of the largest possible one) and in disagreement of the
training's two networks (share of their foreground on which they differ). A scan in which nothing is predicted comes
first. confidence is the mean probability of the voxels predicted as a structure. On hippocampus, from 2 labeled cases
to 6, labeling the most uncertain scans helped no more than labeling any others (docs/results.md).

With --as-dataset 127 the labeled cases of the fold and the scans with their pseudo-labels become a data set of their
own, Dataset127_NAME_Pseudolabeled, on which plain nnU-Net trains. Its fold 0 validates on the cases of the original's
fold, with their true labels. --accept takes only the scans that the model is surest about, by the ranking, and those
whose label somebody has corrected in FOLDER; one in which nothing is predicted is never taken. origin.json in it says
of each case whether its label is true, predicted or corrected, by which model, and how uncertain it was. Of such a
data set its pseudo-labeled cases are predicted again.

A scan of no use (damaged, or of other channels than the data set's) is left out and named at the end, with exit code 1.
Interrupted, the same command goes on where it stopped; a label that somebody has changed in FOLDER is kept.
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
from nnunet_ssl.commands.trained_models import add_device_argument, device_of, model_checkpoint, with_first_stages

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
    ending = predictor.predictor.dataset_json["file_ending"]
    finished = Finished.open(folder, with_first_stages(checkpoint), files, ending)
    corrected = finished.forget_what_is_gone()
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
        if (label := finished.label_of(case)).exists() and not predictor.has_written(prediction, label):
            problems[case] = (
                f"{label} is there already, and is not what the model predicts: it is kept; move it away to have the "
                "scan predicted and ranked"
            )
            continue
        predictor.write(prediction, label)
        finished.add(case, prediction.uncertainty, prediction.volumes_ml)
    order = finished.write_ranking()
    print(f"{len(order)} scans in {options.o}; most uncertain: {', '.join(order[:5]) or 'none'} (see {RANKING})")
    for sentence in filter(None, (kept(corrected), unused, older_conversion(predictor.predictor.dataset_json))):
        print(sentence)
    print(*(f"left out, {case}: {why}" for case, why in problems.items()), sep="\n", end="\n" if problems else "")
    if dataset is not None:
        found = {case: finished.uncertainty(case) for case in order}
        dataset.write(finished.folder, files, found, finished.corrected())
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

    def __init__(self, folder: Path, files: dict[str, list[Path]], ending: str, cases: dict[str, dict]) -> None:
        """Take folder, image files of each scan of the pool, ending of labels, and what is noted of finished scans."""
        self.folder = folder
        self.files = files
        self.ending = ending
        self.cases = cases

    @classmethod
    def open(cls, folder: Path, checkpoints: list[Path], files: dict[str, list[Path]], ending: str) -> "Finished":
        """Read what an earlier call has left in a folder, or make the folder.

        Args:
            folder: of the predictions.
            checkpoints: of the model, and of a cascade's first stage.
            files: the image files of each scan of the pool.
            ending: of label files.

        Raises:
            ValueError: the folder holds something else, or predictions of another model.
        """
        from nnunet_ssl.data.json_schemas import Predicted, parsed, refuse_unfit
        from nnunet_ssl.data.whole_files import replacing

        last = checkpoints[0]
        model = [last.parent.parent.name, last.parent.name, last.name, *marks(checkpoints)]
        file = folder / FINISHED
        if not file.is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ValueError(f"{folder} is not empty: name a new folder with -o")
            with replacing(file) as unfinished:
                unfinished.write_text(json.dumps(model) + "\n")
            return cls(folder, files, ending, {})
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
        return cls(folder, files, ending, {entry["case"]: entry for entry in entries[1:]})

    def label_of(self, case: str) -> Path:
        """Return the file of a scan's predicted labels."""
        return self.folder / f"{case}{self.ending}"

    def forget_what_is_gone(self) -> list[str]:
        """Let scans that have changed or left the pool, or whose label file is missing, count as not done.

        What was predicted for them is deleted, unless somebody has changed it since; these scans are returned.
        """
        from nnunet_ssl.data.stamps import file_digest

        corrected = []
        for case, entry in list(self.cases.items()):
            label = self.label_of(case)
            is_same = case in self.files and entry["marks"] == marks(self.files[case])
            if label.is_file() and not is_same:
                if entry.get("label") != file_digest(label):
                    corrected.append(case)
                else:
                    label.unlink()
            if case not in self.files or not label.is_file():
                del self.cases[case]
        return corrected

    def corrected(self) -> list[str]:
        """Return the scans that are done and whose label somebody has changed since."""
        from nnunet_ssl.data.stamps import file_digest

        return [case for case, entry in self.cases.items() if entry.get("label") != file_digest(self.label_of(case))]

    def add(self, case: str, uncertainty: "Uncertainty", volumes_ml: dict[str, float]) -> None:
        """Note that a scan is done."""
        from nnunet_ssl.data.disk_faults import naming
        from nnunet_ssl.data.stamps import file_digest

        measured = {"uncertainty": asdict(uncertainty), "volumes_ml": volumes_ml}
        written = {"marks": marks(self.files[case]), "label": file_digest(self.label_of(case))}
        self.cases[case] = {"case": case, **written, **measured}
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


def kept(corrected: list[str]) -> str:
    """Return one sentence about labels that somebody has changed, of scans that have changed too or are gone."""
    from nnunet_ssl.data.raw_files import some

    if not corrected:
        return ""
    return (
        f"kept, as somebody has changed the label since: {some(corrected)}, though the scan has changed too, or is no "
        "unlabeled one any more; remove the label to have it predicted anew"
    )


def marks(files: list[Path]) -> list[Any]:
    """Return what tells whether files have changed: size in bytes and time of change in ns of each."""
    return [[file.stat().st_size, file.stat().st_mtime_ns] if file.exists() else None for file in files]
