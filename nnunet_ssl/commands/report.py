"""Write a page about all finished trainings of a data set, compared on the validation cases of their splits.

It holds mean and standard deviation of every metric, the paired difference to nnUNetTrainer with its interval and p,
the curves of every training, the worst, median and best case of each trainer, the splits, versions and warnings. The
page is one file that opens offline; beside it lie report.csv with every case and report.tex with the first table.

With --predictions NAME=FOLDER ... -gt FOLDER predictions of a test set are compared instead, the first as baseline.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_ssl.evaluation.folders import Row, Structures
    from nnunet_ssl.evaluation.report import Picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set: id or name")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: 3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("-o", default="report", metavar="FOLDER", help="default: report")
    parser.add_argument("--predictions", nargs="+", metavar="NAME=FOLDER", help="predictions of a test set")
    parser.add_argument("-gt", metavar="FOLDER", help="with --predictions: its references (default: labelsTs)")
    parser.add_argument("-np", type=int, default=2, metavar="N", help="processes (default: 2)")


def run(options: argparse.Namespace) -> int:
    """Evaluate, compare and write the page."""
    from nnunet_ssl.commands.preprocess import check_environment, dataset_name

    check_environment()
    name = dataset_name(options.d)
    raw, preprocessed = (Path(os.environ[f"nnUNet_{place}"], name) for place in ("raw", "preprocessed"))
    if options.gt and not options.predictions:
        raise ValueError("-gt goes with --predictions")
    if options.np < 1:
        raise ValueError(f"-np is a number of processes, at least 1, got {options.np}")

    import matplotlib.style

    from nnunet_ssl.evaluation import report
    from nnunet_ssl.evaluation.folders import Structures, evaluate_folders
    from nnunet_ssl.evaluation.runs import evaluate_run, find_runs

    structures = Structures.of_dataset(preprocessed / "dataset.json")
    runs, warnings = [], []
    results: dict[str, list[Row]] = {}
    if options.predictions:
        folders = named_folders(options.predictions)
        references = Path(options.gt) if options.gt else raw / "labelsTs"
        for trainer, folder in folders.items():
            results[trainer] = evaluate_folders(references, folder, structures, num_processes=options.np)
        shown = {
            name: {case: folder / f"{case}{structures.ending}" for case in report.dice_by_case(results[name])}
            for name, folder in folders.items()
        }
    else:
        if not os.environ.get("nnUNet_results"):
            raise ValueError("nnUNet_results not set: export nnUNet_results=/path/to/folder")
        found = find_runs(Path(os.environ["nnUNet_results"], name), preprocessed, options.c, options.p)
        runs, warnings, references = found.runs, found.warnings, preprocessed / "gt_segmentations"
        shown = {}
        for one in runs:
            results.setdefault(one.trainer, []).extend(evaluate_run(one, references, structures, options.np))
            shown.setdefault(one.trainer, {}).update(
                {one.key(case): one.folder / "validation" / f"{case}{structures.ending}" for case in one.cases}
            )
    with matplotlib.style.context("default"):  # nnU-Net's own plot sets huge fonts for the whole process
        pictures = [report.box_plots(results), *([report.curves(runs)] if runs else [])]
        pictures += previews(results, shown, references, raw, structures)
    tables = [report.metrics_table(results), report.differences_table(results)]
    tables += [report.runs_table(runs)] if runs else []
    page = report.write_report(Path(options.o), f"{name}, {options.c}", results, tables, pictures, warnings)
    print(*(f"warning: {warning}" for warning in warnings), sep="\n", end="\n" if warnings else "")
    print(f"{page}: {len(results)} trainers")
    return 0


def named_folders(texts: list[str]) -> dict[str, Path]:
    """Read NAME=FOLDER ...; a ValueError says what is wrong."""
    folders = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not name or not equals or not Path(folder).is_dir():
            raise ValueError(f"--predictions takes NAME=FOLDER with a folder that exists, got {text!r}")
        folders[name] = Path(folder)
    return folders


def previews(
    results: "dict[str, list[Row]]",
    shown: dict[str, dict[str, Path]],
    references: Path,
    raw: Path,
    structures: "Structures",
) -> "list[Picture]":
    """Draw the worst, median and best case of each trainer, beside the reference and the first trainer."""
    import SimpleITK

    from nnunet_ssl.data.image_files import read_image
    from nnunet_ssl.evaluation.previews import chosen_cases, draw_case, image_file
    from nnunet_ssl.evaluation.report import Picture, dice_by_case, encoded

    dice = {trainer: dice_by_case(rows) for trainer, rows in results.items()}
    baseline = next(iter(results))
    pictures = []
    for trainer in results:
        for which, case in chosen_cases(dice[trainer]).items():
            file_name = shown[trainer][case].name
            file = image_file(raw, file_name.removesuffix(structures.ending), structures.ending)
            if file is None:
                continue
            image = read_image(file)
            layers = {"reference": references / file_name}
            for name in dict.fromkeys((baseline, trainer)):
                if case in shown[name]:
                    layers[f"{name}\nDice {dice[name][case]:.3f}"] = shown[name][case]
            labels = {title: SimpleITK.GetArrayFromImage(read_image(path)) for title, path in layers.items()}
            voxels = SimpleITK.GetArrayFromImage(image)
            names = {value[0]: name for name, value in structures.values.items() if len(value) == 1}
            figure = draw_case(voxels, labels, image.GetSpacing()[::-1], names)
            pictures.append(Picture(f"{trainer}: {which} case, {case}", encoded(figure), ""))
    return pictures
