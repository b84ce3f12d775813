"""Preprocess the unlabeled images of a data set, nnUNet_raw/DatasetXXX/imagesUn, with its plans.

Run nnUNetv2_plan_and_preprocess first. What is up to date is left alone. An image that cannot be preprocessed stops no
other: it is named at the end, the exit code is 1, and trainings leave it out.
"""

import argparse
import os


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, as nnUNetv2_preprocess has them."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set: id or name")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="configurations (default: all but cascades)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("-np", type=int, metavar="N", help="processes (default: nnUNet_def_n_proc, or 8)")


def run(options: argparse.Namespace) -> int:
    """Preprocess each configuration; return 1 if an image could not be."""
    check_environment()
    if options.np is not None and options.np < 1:
        raise ValueError(f"-np is a number of processes, at least 1, got {options.np}")

    from nnunetv2.configuration import default_num_processes

    num_processes = options.np or min(default_num_processes, os.cpu_count() or 1)
    lines: list[str] = []
    for job in find_jobs(options.d, options.c, options.p):
        problems = job.run(num_processes, retry_problems=True)
        print(f"{job.configuration}: {len(job.image_files()) - len(problems)} unlabeled cases in {job.preprocessed}")
        lines += [f"{job.configuration}: could not preprocess {case}: {why}" for case, why in sorted(problems.items())]
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if lines else 0


def check_environment() -> None:
    """Raise a ValueError naming the nnU-Net variables that are not set."""
    missing = [name for name in ("nnUNet_raw", "nnUNet_preprocessed") if not os.environ.get(name)]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not set: export {missing[0]}=/path/to/folder")


def find_jobs(dataset: str, configurations: list[str] | None, plans_identifier: str) -> list:
    """Return what there is to do: one `UnlabeledPreprocessing` for each configuration.

    Raises:
        ValueError: no such data set, plans or configuration; no unlabeled image.
    """
    from pathlib import Path

    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing, folder_of

    name = dataset_name(dataset)
    folder = Path(nnUNet_preprocessed, name)
    plans_file = folder / f"{plans_identifier}.json"
    if not plans_file.exists():
        raise ValueError(f"there is no {plans_file}: nnUNetv2_plan_and_preprocess -d {dataset}")
    plans = PlansManager(load_json(str(plans_file)))
    known = {c: plans.get_configuration(c) for c in plans.available_configurations}
    chosen = configurations or [c for c, manager in known.items() if manager.previous_stage_name is None]
    unknown = [c for c in chosen if c not in known]
    if unknown:
        raise ValueError(f"{plans_file} has no configuration {unknown[0]}, it has {', '.join(known)}")
    dataset_json = load_json(str(folder / "dataset.json"))
    images = Path(nnUNet_raw, name, "imagesUn")
    jobs = [
        UnlabeledPreprocessing(plans.plans, c, dataset_json, images, folder_of(folder, known[c].data_identifier))
        for c in chosen
    ]
    if not jobs[0].image_files():
        raise ValueError(f"no unlabeled images: put them into {images} as CASE_0000{dataset_json['file_ending']}")
    return jobs


def dataset_name(dataset: str) -> str:
    """Return the name of a data set given by id or name; a ValueError if nnU-Net knows none."""
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    try:
        return maybe_convert_to_dataset_name(dataset)
    except (RuntimeError, ValueError):
        raise ValueError(
            f"nnU-Net knows no data set {dataset!r} in {os.environ['nnUNet_raw']} or "
            f"{os.environ['nnUNet_preprocessed']}"
        ) from None
