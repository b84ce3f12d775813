"""Prove which labels a training of a data set can see: of split, files, contents, plans and runs.

Every scan is read once and remembered beside the preprocessed data, so that a second call takes seconds; trainings and
the doctor look at what is remembered. Copies are found under any name: with equal voxels or after flips, a shift of up
to 2 voxels, resampling by up to 1.5, another range of intensities, noise of up to 1 % of it, without a slice.

Exit code 1 says that there is a leak; each comes with the words that fix it.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssl.commands.findings import Finding

if TYPE_CHECKING:
    from nnunet_ssl.data.raw_files import RawDataset
    from nnunet_ssl.leaks.leak import Leak
    from nnunet_ssl.leaks.of_folds import Scans
    from nnunet_ssl.leaks.sides import Fold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set: id or name")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds of splits_final.json (default: all)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")


def run(options: argparse.Namespace) -> int:
    """Print all findings; return 1 if there is a leak."""
    from nnunet_ssl.commands.preprocess import check_environment
    from nnunet_ssl.data.dataset_names import dataset_name
    from nnunet_ssl.data.raw_files import RawDataset
    from nnunet_ssl.leaks.sides import folds_of

    check_environment()
    name = dataset_name(options.d)
    raw_folder, preprocessed = (Path(os.environ[f"nnUNet_{place}"], name) for place in ("raw", "preprocessed"))
    if not (raw_folder / "dataset.json").is_file():
        raise ValueError(f"there is no {raw_folder / 'dataset.json'}: an audit reads the raw images, bring them there")
    raw = RawDataset.open(raw_folder)
    folds = chosen(folds_of(raw, preprocessed), options.f)
    findings = [
        *of_data(raw, preprocessed, options.p),
        *of_splits(folds, raw, preprocessed),
        *of_runs(folds, name, preprocessed),
    ]
    print(*(finding.lines() for finding in findings), sep="\n")
    leaks = sum(finding.is_problem for finding in findings)
    print(f"{name}: {f'{leaks} leak(s)' if leaks else 'no leak was found'}.")
    return 1 if leaks else 0


def chosen(folds: "list[Fold]", names: list[str] | None) -> "list[Fold]":
    """Return the folds that -f names; a ValueError for one that there is not."""
    if names is None:
        return folds
    known = {fold.name: fold for fold in folds}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no fold {unknown[0]}: there are {', '.join(known) or 'none'}")
    return [known[name] for name in dict.fromkeys(names)]


def of_data(raw: "RawDataset", preprocessed: Path, plans: str) -> Iterator[Finding]:
    """Read all scans, and look at files and plans."""
    from nnunet_ssl.data.raw_files import some
    from nnunet_ssl.leaks.copies import compare_all
    from nnunet_ssl.leaks.of_files import label_maps_as_images, labels_beside_images
    from nnunet_ssl.leaks.of_planning import leaks_of_planning

    index = compare_all(raw, preprocessed)
    problems = [f"{name}: {scan.problem}" for name, scan in index.scans.items() if scan.problem]
    state = f"{len(index.scans) - len(problems)} read and compared, {len(index.pairs)} pairs of them at full resolution"
    yield Finding("scans", state)
    if problems:
        yield Finding("scans", f"{len(problems)} cannot be compared: {some(problems, most=2)}", "look at these files")
    leaks = [*labels_beside_images(raw), *label_maps_as_images(raw, index)]
    yield from (finding_of(leak) for leak in leaks)
    leaks = [*leaks_of_planning(raw, preprocessed, plans, preprocessed_folders(preprocessed, plans))]
    yield from (finding_of(leak) for leak in leaks)
    if (hidden := len(raw.labels("labelsHidden"))) and not leaks:
        yield Finding("hidden labels", f"{hidden}, of which plans and preprocessed cases know nothing")


def of_splits(folds: "list[Fold]", raw: "RawDataset", preprocessed: Path) -> Iterator[Finding]:
    """Look at what stands on two sides of each fold; what is so in several folds is said once."""
    from nnunet_ssl.leaks.of_folds import Scans, copies_on_one_side
    from nnunet_ssl.leaks.of_planning import visible_labels

    scans = Scans.of(raw, preprocessed)
    source = "splits_final.json" if (preprocessed / "splits_final.json").exists() else "the split that a training makes"
    if not folds:
        yield Finding("split", f"{source} has no fold", "label cases, or write the split again")
    for fold in folds:
        sizes = ", ".join(f"{len(cases)} {side}" for side, cases in fold.sides.items())
        yield Finding(f"fold {fold.name}", f"{sizes}, by {source}")
    yield from findings_of_folds(folds, raw, scans)
    yield from (finding_of(leak) for leak in (*copies_on_one_side(folds, scans), *visible_labels(folds, raw)))


def findings_of_folds(
    folds: "list[Fold]", raw: "RawDataset", scans: "Scans", only_stops: bool = False
) -> Iterator[Finding]:
    """Give what stands on two sides, with the folds in which it does.

    With `only_stops` a problem is what keeps a training from starting.
    """
    from nnunet_ssl.data.raw_files import some
    from nnunet_ssl.leaks.of_folds import leaks_of_fold

    of_leak: dict[Leak, list[str]] = {}
    for fold in folds:
        leaks = leaks_of_fold(fold, scans, raw.folder.name, raw.dataset_json.get("patient_pattern"))
        for leak in leaks:
            of_leak.setdefault(leak, []).append(fold.name)
    for leak, names in of_leak.items():
        finding = finding_of(leak, f"fold {some(names)}, ")
        yield replace(finding, is_problem=leak.stops_training) if only_stops else finding


def of_runs(folds: "list[Fold]", name: str, preprocessed: Path) -> Iterator[Finding]:
    """Look at the trainings of a data set, where nnUNet_results is set."""
    from nnunet_ssl.leaks.of_runs import leaks_of_runs

    if results := os.environ.get("nnUNet_results"):
        yield from (finding_of(leak) for leak in leaks_of_runs(Path(results, name), preprocessed, folds))


def preprocessed_folders(preprocessed: Path, plans: str) -> list[Path]:
    """Return where nnU-Net's preprocessed cases lie."""
    from nnunet_ssl.data.plans_file import configurations_of, plans_problem, read_plans

    file = preprocessed / f"{plans}.json"
    if plans_problem(file) is not None:
        return []
    names = {one.data_identifier for one in configurations_of(read_plans(file)).values()}
    return [preprocessed / name for name in sorted(names) if (preprocessed / name).is_dir()]


def finding_of(leak: "Leak", where: str = "") -> Finding:
    """Return a leak as a finding, a problem unless it is a note."""
    return Finding(f"{where}{leak.name}", leak.state, leak.remedy, is_problem=not leak.is_note)
