"""Preprocess the unlabeled images of a data set, nnUNet_raw/DatasetXXX/imagesUn, with its plans.

Run nnUNetv2_plan_and_preprocess first. What is up to date is left alone. An image that cannot be preprocessed stops no
other: it is named at the end, the exit code is 1, and trainings leave it out; but where its channels are not those of
the data set they do not start. With --part-id K --num-parts N several processes or nodes do a part each, K from 0 to
N - 1; interrupted, the same words go on.
"""

import argparse
import os
from typing import TYPE_CHECKING

from nnunet_ssl.data.dataset_names import dataset_name

if TYPE_CHECKING:
    from nnunet_ssl.data.locks import Part


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, as nnUNetv2_preprocess has them."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set: id or name")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="default: those of the labeled cases")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("-np", type=int, metavar="N", help="processes (default: nnUNet_def_n_proc, or 8)")
    parser.add_argument("--part-id", type=int, metavar="K", help="do this part of the images alone, from 0")
    parser.add_argument("--num-parts", type=int, metavar="N", help="of so many, which may be done at the same time")


def run(options: argparse.Namespace) -> int:
    """Preprocess each configuration; return 1 if an image could not be."""
    check_environment()
    if options.np is not None and options.np < 1:
        raise ValueError(f"-np is a number of processes, at least 1, got {options.np}")

    from nnunetv2.configuration import default_num_processes

    from nnunet_ssl.data.older_conversions import older_conversion

    part = part_of(options)
    num_processes = options.np or min(default_num_processes, os.cpu_count() or 1)
    lines: list[str] = []
    if written := split_that_fits(options.d):
        print(written)
    for job in find_jobs(options.d, options.c, options.p):
        problems = job.run(num_processes, retry_problems=True, part=part)
        cases = part.of(job.image_files())
        of_part = "" if part.parts == 1 else f" of part {part.number} of {part.parts}"
        print(f"{job.configuration}: {len(cases) - len(problems)} unlabeled cases{of_part} in {job.preprocessed}")
        lines += [f"{job.configuration}: could not preprocess {case}: {why}" for case, why in sorted(problems.items())]
    if unused := job.unused_files():
        print(unused)
    if sentence := older_conversion(job.dataset_json):
        print(f"WARNING: {sentence}")
    print(*lines, sep="\n", end="\n" if lines else "")
    return 1 if lines else 0


def part_of(options: argparse.Namespace) -> "Part":
    """Return which part of the images is asked for.

    Raises:
        ValueError: there is no such part, or it is not said of how many.
    """
    from nnunet_ssl.data.locks import WHOLE, Part

    if (options.part_id is None) != (options.num_parts is None):
        raise ValueError("--part-id K and --num-parts N go together: part K, from 0, of N")
    return WHOLE if options.part_id is None else Part(options.part_id, options.num_parts)


def split_that_fits(dataset: str) -> str:
    """Write a split where there is none and nnU-Net's five folds would not fit; return a sentence about it, or none."""
    from pathlib import Path

    from nnunet_ssl.data.raw_files import files_in, read_dataset_json
    from nnunet_ssl.data.split_file import write_small_split

    folder = Path(os.environ["nnUNet_preprocessed"], dataset_name(dataset))
    if not (folder / "dataset.json").is_file():
        return ""
    dataset_json = read_dataset_json(folder / "dataset.json")
    ending = dataset_json["file_ending"]
    cases = [file.name.removesuffix(ending) for file in files_in(folder / "gt_segmentations", ending)]
    return write_small_split(folder / "splits_final.json", cases, dataset_json.get("patient_pattern"))


def check_environment(*more: str) -> None:
    """Raise a ValueError naming the nnU-Net variables that are not set, of two and what is needed besides."""
    missing = [name for name in ("nnUNet_raw", "nnUNet_preprocessed", *more) if not os.environ.get(name)]
    if missing:
        values = " ".join(f"{name}=/path/to/folder" for name in missing)
        raise ValueError(f"{' and '.join(missing)} not set: export {values}")


def find_jobs(dataset: str, configurations: list[str] | None, plans_identifier: str) -> list:
    """Return what there is to do: one `UnlabeledPreprocessing` for each configuration.

    Raises:
        ValueError: no such data set, plans or configuration; no unlabeled image.
    """
    from pathlib import Path

    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

    from nnunet_ssl.data.plans_file import configurations_of, configurations_to_preprocess, read_plans
    from nnunet_ssl.data.raw_files import read_dataset_json
    from nnunet_ssl.data.stamps import folder_of
    from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing

    name = dataset_name(dataset)
    folder = Path(nnUNet_preprocessed, name)
    plans_file = folder / f"{plans_identifier}.json"
    plans = read_plans(plans_file)
    known = configurations_of(plans)
    every = configurations_to_preprocess(plans)
    there = [c for c in every if (folder / known[c].data_identifier).is_dir()]
    chosen = configurations or there or every
    if unknown := [c for c in chosen if c not in known]:
        raise ValueError(f"{plans_file} has no configuration {unknown[0]}, it has {', '.join(known)}")
    dataset_json = read_dataset_json(folder / "dataset.json")
    images = Path(nnUNet_raw, name, "imagesUn")
    jobs = [
        UnlabeledPreprocessing(plans.plans, c, dataset_json, images, folder_of(folder, known[c].data_identifier))
        for c in chosen
    ]
    if not jobs[0].image_files():
        unused = jobs[0].unused_files()
        raise ValueError(
            f"no unlabeled images: put them into {images} as CASE_0000{dataset_json['file_ending']}"
            + (f" ({unused})" if unused else "")
        )
    return jobs
