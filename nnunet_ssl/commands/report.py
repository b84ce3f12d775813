"""Write a page about all finished trainings of a data set, compared on the validation cases of their splits.

It holds mean and standard deviation of every metric, the paired difference to nnUNetTrainer with its interval and p,
the curves of every training, the worst, median and best case of each trainer, the splits, versions and warnings. The
page is one file that opens offline; beside it lie report.csv with every case and report.tex with the first table.

Several data sets and, with --results, several folders of results (seeds) are compared training by training as well.
Trainings with the option validate_all_networks=true show the student beside the teacher.

With --predictions NAME=FOLDER ... -gt FOLDER predictions of a test set are compared instead, the first as baseline.
"""

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_ssl.evaluation.folders import Row, Structures
    from nnunet_ssl.evaluation.report import Comparison, Picture, Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-d", required=True, nargs="+", metavar="DATASET", help="data sets: ids or names")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: 3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument(
        "--results", nargs="+", metavar="FOLDER", help="like $nnUNet_results (default), for example one for each seed"
    )
    parser.add_argument("-o", default="report", metavar="FOLDER", help="default: report")
    parser.add_argument("--predictions", nargs="+", metavar="NAME=FOLDER", help="predictions of a test set")
    parser.add_argument("-gt", metavar="FOLDER", help="with --predictions: its references (default: labelsTs)")
    parser.add_argument("-np", type=int, default=2, metavar="N", help="processes (default: 2)")


def run(options: argparse.Namespace) -> int:
    """Evaluate, compare and write the page."""
    from nnunet_ssl.commands.preprocess import check_environment, dataset_name

    check_environment()
    names = [dataset_name(given) for given in options.d]
    check(options)

    import matplotlib.style

    from nnunet_ssl.evaluation import report

    with matplotlib.style.context("default"):  # nnU-Net's own plot sets huge fonts for the whole process
        compare = compare_predictions if options.predictions else compare_trainings
        sections = [compare(name, options) for name in names]
    if len(sections) > 1:
        sections = [titled(section) for section in sections]
    comparisons = [section.comparison for section in sections]
    tables = [table for section in sections for table in section.tables]
    if any(len(set(one.trainings.values())) > 1 for one in comparisons) or len(comparisons) > 1:
        tables.insert(0 if len(comparisons) > 1 else 2, report.trainings_table(comparisons))
    pictures = [picture for section in sections for picture in section.pictures]
    warnings = [warning for section in sections for warning in section.warnings]
    title = f"{', '.join(names)}, {options.c}"
    page = report.write_report(Path(options.o), title, comparisons, tables, pictures, warnings)
    print(*(f"warning: {warning}" for warning in warnings), sep="\n", end="\n" if warnings else "")
    trainers = dict.fromkeys(trainer for one in comparisons for trainer in one.results)
    print(f"{page}: {len(trainers)} trainers" + (f", {len(names)} data sets" if len(names) > 1 else ""))
    return 0


def check(options: argparse.Namespace) -> None:
    """Raise a ValueError where arguments do not go together."""
    if options.gt and not options.predictions:
        raise ValueError("-gt goes with --predictions")
    if options.predictions and (len(options.d) > 1 or options.results):
        raise ValueError("--predictions are of one data set, and go without --results")
    if options.np < 1:
        raise ValueError(f"-np is a number of processes, at least 1, got {options.np}")
    for folder in options.results or ():
        if not Path(folder).is_dir():
            raise ValueError(f"--results takes folders that exist, got {folder!r}")
    for given in ("d", "results"):
        values = getattr(options, given) or ()
        if len(set(values)) < len(values):
            raise ValueError(f"-{given if given == 'd' else '-results'} names one twice: {' '.join(values)}")
    if not options.predictions and not options.results and not os.environ.get("nnUNet_results"):
        raise ValueError("nnUNet_results not set: export nnUNet_results=/path/to/folder")


@dataclass(frozen=True)
class Section:
    """What the page has of one data set."""

    comparison: "Comparison"
    tables: "list[Table]"
    pictures: "list[Picture]"
    warnings: list[str]


def compare_trainings(name: str, options: argparse.Namespace) -> Section:
    """Compare the validation predictions of all finished trainings of a data set."""
    from nnunet_ssl.evaluation import report
    from nnunet_ssl.evaluation.folders import Structures
    from nnunet_ssl.evaluation.runs import baseline_first, evaluate_run, find_runs, predictions_of

    preprocessed = Path(os.environ["nnUNet_preprocessed"], name)
    structures = Structures.of_dataset(preprocessed / "dataset.json")
    runs, warnings = [], []
    for folder, series in series_of(options.results or [os.environ["nnUNet_results"]]).items():
        found = find_runs(folder / name, preprocessed, options.c, options.p, series)
        runs += found.runs
        warnings += found.warnings
    runs.sort(key=baseline_first)
    results, shown, trainings = {}, {}, {}
    for one in runs:
        trainings |= {one.key(case): one.training for case in one.cases}
        for predictor, folder in predictions_of(one).items():
            rows = evaluate_run(one, folder, preprocessed / "gt_segmentations", structures, options.np)
            results.setdefault(predictor, []).extend(rows)
            files = {one.key(case): folder / f"{case}{structures.ending}" for case in one.cases}
            shown.setdefault(predictor, {}).update(files)
    section = section_of(
        report.Comparison(name, results, trainings), shown, preprocessed / "gt_segmentations", structures
    )
    section.tables.append(report.runs_table(runs))
    section.pictures.insert(1, report.curves(runs))
    section.warnings.extend(warnings)
    return section


def series_of(folders: list[str]) -> dict[Path, str]:
    """Return the results folders with the names that tell them apart: none for a single one."""
    paths = [Path(folder) for folder in folders]
    names = [path.name for path in paths] if len({path.name for path in paths}) == len(paths) else folders
    return dict(zip(paths, names if len(paths) > 1 else [""], strict=True))


def compare_predictions(name: str, options: argparse.Namespace) -> Section:
    """Compare folders of predictions of a test set."""
    from nnunet_ssl.evaluation import report
    from nnunet_ssl.evaluation.folders import Structures, evaluate_folders

    raw, preprocessed = (Path(os.environ[f"nnUNet_{place}"], name) for place in ("raw", "preprocessed"))
    structures = Structures.of_dataset(preprocessed / "dataset.json")
    references = Path(options.gt) if options.gt else raw / "labelsTs"
    folders = named_folders(options.predictions)
    results = {
        trainer: evaluate_folders(references, folder, structures, num_processes=options.np)
        for trainer, folder in folders.items()
    }
    shown = {
        trainer: {case: folders[trainer] / f"{case}{structures.ending}" for case in report.dice_by_case(rows)}
        for trainer, rows in results.items()
    }
    return section_of(report.Comparison(name, results, {}), shown, references, structures)


def section_of(
    comparison: "Comparison", shown: dict[str, dict[str, Path]], references: Path, structures: "Structures"
) -> Section:
    """Return tables and pictures of a comparison."""
    from nnunet_ssl.evaluation import report

    results, raw = comparison.results, Path(os.environ["nnUNet_raw"], comparison.dataset)
    tables = [report.metrics_table(results), report.differences_table(results)]
    pictures = [report.box_plots(results), *previews(results, shown, references, raw, structures)]
    return Section(comparison, tables, pictures, [])


def titled(section: Section) -> Section:
    """Return a section whose tables, pictures and warnings name the data set."""
    name = section.comparison.dataset
    tables = [replace(table, name=f"{table.name}-{name}", title=f"{name}: {table.title}") for table in section.tables]
    pictures = [replace(picture, title=f"{name}: {picture.title}") for picture in section.pictures]
    return Section(section.comparison, tables, pictures, [f"{name}: {warning}" for warning in section.warnings])


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
