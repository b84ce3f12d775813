"""Write a page about all finished trainings of a data set, compared on the validation cases of their splits.

It holds mean and standard deviation of every metric, the paired difference to nnUNetTrainer over the patients with its
interval and p, and beside them the spread between trainings, which these do not include; the curves of every training,
the worst, median and best case of each trainer, the splits, versions and warnings. The page is one file that opens
offline; beside it lie report.csv with every prediction and report.tex with the first table. Patients are what
patient_pattern in dataset.json finds in the case ids. What is unfinished or broken is left out, and said.

Several data sets and, with --results, several folders of results (seeds) are compared training by training as well.
Trainings with the option validate_all_networks=true show the student beside the teacher.

With --predictions NAME=FOLDER ... -gt FOLDER predictions of a test set are compared instead, the first as baseline.
"""

import argparse
import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from nnunet_ssl.commands.outputs import output_folder
from nnunet_ssl.commands.report_sections import Collected, Section, joined, section_of, titled

if TYPE_CHECKING:
    from nnunet_ssl.evaluation.runs import Run
    from nnunet_ssl.evaluation.structures import Structures


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

    check_environment(*([] if options.predictions or options.results else ["nnUNet_results"]))
    names = [dataset_name(given) for given in options.d]
    check(options, names)

    import matplotlib.style

    from nnunet_ssl.evaluation.report import write_report
    from nnunet_ssl.evaluation.report_tables import trainings_table

    with matplotlib.style.context("default"):  # nnU-Net's own plot sets huge fonts for the whole process
        compare = compare_predictions if options.predictions else compare_trainings
        sections = [compare(name, options) for name in names]
    if len(sections) > 1:
        sections = [titled(section) for section in sections]
    comparisons = [section.comparison for section in sections]
    tables = [table for section in sections for table in section.tables]
    trainings = {key.training for one in comparisons for predictions in one.results.values() for key in predictions}
    if len(trainings) > 1 or len(comparisons) > 1:
        tables.insert(0 if len(comparisons) > 1 else -1, trainings_table(comparisons))  # -1: before what was trained
    pictures = [picture for section in sections for picture in section.pictures]
    warnings = [warning for section in sections for warning in section.warnings]
    title = f"{', '.join(names)}, {options.c}"
    page = write_report(Path(options.o), title, comparisons, tables, pictures, warnings)
    print(*(f"warning: {warning}" for warning in warnings), sep="\n", end="\n" if warnings else "")
    trainers = dict.fromkeys(trainer for one in comparisons for trainer in one.results)
    count = f"{len(trainers)} trainer" + "s" * (len(trainers) > 1)
    print(f"{page}: {count}" + (f", {len(names)} data sets" if len(names) > 1 else ""))
    return 0


def check(options: argparse.Namespace, names: list[str]) -> None:
    """Raise a ValueError where arguments do not go together."""
    output_folder(options.o)
    if options.gt and not options.predictions:
        raise ValueError("-gt goes with --predictions")
    if options.predictions and (len(options.d) > 1 or options.results):
        raise ValueError("--predictions are of one data set, and go without --results")
    if options.np < 1:
        raise ValueError(f"-np is a number of processes, at least 1, got {options.np}")
    for folder in options.results or ():
        if not Path(folder).is_dir():
            raise ValueError(f"--results takes folders that exist, got {folder!r}")
    folders = [str(Path(folder).resolve()) for folder in options.results or ()]
    for option, given, meant in (("-d", options.d, names), ("--results", options.results, folders)):
        if len(set(meant)) < len(meant):
            raise ValueError(f"{option} names one twice: {' '.join(given)}")


def compare_trainings(name: str, options: argparse.Namespace) -> Section:
    """Compare the validation predictions of all finished trainings of a data set."""
    from nnunet_ssl.evaluation.leaving_out import evaluate_available
    from nnunet_ssl.evaluation.runs import predictions_of

    preprocessed = Path(os.environ["nnUNet_preprocessed"], name)
    references = preprocessed / "gt_segmentations"
    structures = compared_structures(preprocessed, references, options)
    runs, warnings = all_runs(name, preprocessed, options)
    collected, used = Collected({}, {}), []
    for one in runs:
        for predictor, folder in predictions_of(one).items():
            rows, problems = evaluate_available(references, folder, one.cases, structures, options.np)
            for problem in problems:
                again = validation(name, one.trainer, one.fold, options)
                remedy = labels_again(name, references, structures.ending) if problem.is_of_references else again
                warnings.append(f"{predictor}, {one.training}: {problem.text}, left out ({remedy})")
            for case, of_case in rows.items():
                file = folder / f"{case}{structures.ending}"
                collected.add(predictor, one.prediction(case), of_case, file)
            if rows and one not in used:
                used.append(one)
    return section_of(name, collected, references, structures, warnings, used)


def validation(name: str, trainer: str, fold: str, options: argparse.Namespace) -> str:
    """Return nnU-Net's command that predicts the validation cases of a training again."""
    return f"nnUNetv2_train {quote(name)} {quote(options.c)} {fold} -tr {trainer} -p {quote(options.p)} --val"


def labels_again(name: str, references: Path, ending: str) -> str:
    """Return the command that copies the labels to where nnU-Net's validation and the report look for references."""
    labels = Path(os.environ["nnUNet_raw"], name, "labelsTr")
    return f"cp {quote(str(labels))}/*{ending} {quote(str(references))}/"


def compared_structures(preprocessed: Path, references: Path, options: argparse.Namespace) -> "Structures":
    """Return what is compared, and the reader of the files: that of the plans where they are at hand."""
    from nnunet_ssl.data.dataset_names import planning_command
    from nnunet_ssl.data.raw_files import read_json_file
    from nnunet_ssl.evaluation.structures import Structures

    if not (preprocessed / "dataset.json").exists():
        raise ValueError(
            f"there is no {preprocessed / 'dataset.json'}: {planning_command(preprocessed.name, options.p)}"
        )
    plans = preprocessed / f"{options.p}.json"
    return Structures.of_dataset(
        preprocessed / "dataset.json", read_json_file(plans) if plans.is_file() else None, references
    )


def all_runs(name: str, preprocessed: Path, options: argparse.Namespace) -> "tuple[list[Run], list[str]]":
    """Return the finished trainings in all folders of results, the baseline's first, and what is left out.

    Raises:
        ValueError: there is none.
    """
    from nnunet_ssl.data.raw_files import some
    from nnunet_ssl.evaluation.runs import baseline_first, find_runs

    runs, warnings = [], []
    for folder, series in series_of(options.results or [os.environ["nnUNet_results"]]).items():
        found = find_runs(folder / name, preprocessed, options.c, options.p, series)
        if not found.runs:
            models = sorted(one.name for one in (folder / name).glob("*__*__*"))
            wanted = f"{options.p}__{options.c}"
            others = "" if any(one.endswith(f"__{wanted}") for one in models) else some(models)
            warnings.append(
                f"there is no finished training of {options.c}, {options.p} in {folder / name}"
                + (f"; choose with -c and -p from {others}" if others else "")
            )
        runs += found.runs
        warnings += found.warnings
    if not runs:
        raise ValueError(joined(warnings))
    return sorted(runs, key=baseline_first), warnings


def series_of(folders: list[str]) -> dict[Path, str]:
    """Return the results folders with the names that tell them apart: none for a single one."""
    paths = [Path(folder) for folder in folders]
    names = [path.name for path in paths] if len({path.name for path in paths}) == len(paths) else folders
    return dict(zip(paths, names if len(paths) > 1 else [""], strict=True))


def compare_predictions(name: str, options: argparse.Namespace) -> Section:
    """Compare folders of predictions of a test set."""
    from nnunet_ssl.evaluation.comparison import Prediction
    from nnunet_ssl.evaluation.folders import cases_of, no_reference
    from nnunet_ssl.evaluation.leaving_out import evaluate_available

    raw, preprocessed = (Path(os.environ[f"nnUNet_{place}"], name) for place in ("raw", "preprocessed"))
    folders = named_folders(options.predictions)
    references = Path(options.gt) if options.gt else raw / "labelsTs"
    structures = compared_structures(preprocessed, references, options)
    cases = cases_of(references, structures.ending)
    if not cases:
        raise ValueError(no_reference(references, structures.ending))
    collected, warnings = Collected({}, {}), []
    for trainer, folder in folders.items():
        rows, problems = evaluate_available(references, folder, cases, structures, options.np)
        warnings += [f"{trainer}: {problem.text}, left out" for problem in problems]
        for case, of_case in rows.items():
            collected.add(trainer, Prediction("", case), of_case, folder / f"{case}{structures.ending}")
    return section_of(name, collected, references, structures, warnings)


def named_folders(texts: list[str]) -> dict[str, Path]:
    """Read NAME=FOLDER ...; a ValueError says what is wrong."""
    folders = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not name or not equals or not Path(folder).is_dir():
            raise ValueError(f"--predictions takes NAME=FOLDER with a folder that exists, got {text!r}")
        if name in folders:
            raise ValueError(f"--predictions names {name!r} twice: {' '.join(texts)}")
        folders[name] = Path(folder)
    return folders
