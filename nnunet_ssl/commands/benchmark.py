"""Compare trainers with few labeled cases: train all combinations of trainers, labeled cases and seeds, and report.

  nnunet_ssl benchmark -d 27 -c 2d --trainers nnUNetTrainerBCP nnUNetTrainerFixMatch --labeled 3 7 --seeds 0 1 2

Each seed draws its own labeled cases, those of a smaller number among those of a larger one, and seeds the training;
of a data set that knows its patients (patient_pattern), whole patients. nnUNetTrainer is trained on the same cases, and
once for each seed on all labels. Validated is on fold 0 of nnU-Net's own split. The unlabeled cases are those of
imagesUn; without any, the training cases that are not labeled. With --own-split all three are those of the data set's
splits_final.json. The data set's own files are not changed.

A training is as long as nnU-Net's: 1000 epochs of 250 steps, with the network of the plans. --steps 2000, divided into
20 epochs, --features and --batch-size make all trainings smaller alike.

A finished training leaves a small file and is not repeated. Interrupted, the same command goes on where it stopped. At
the end it prints what is finished so far, in tables, and writes it as report.md. With --slurm each training is a task
of a job array; the same command again prints what is finished by then, and submits what has ended without a result.
Exit code 1: a training failed.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_ssl.benchmarking.planning import Comparison, Planned
    from nnunet_ssl.benchmarking.running import Places


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("-d", "--dataset", required=True, metavar="DATASET", help="data set: id or name")
    parser.add_argument(
        "-c", "--configuration", default="3d_fullres", metavar="CONFIGURATION", help="default: 3d_fullres"
    )
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("--trainers", nargs="+", required=True, metavar="NAME", help="yours in nnUNet_extTrainer too")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--labeled", type=int, nargs="+", metavar="N", help="numbers of labeled cases, or patients")
    which.add_argument("--own-split", action="store_true", help="take the data set's own splits_final.json")
    parser.add_argument("-f", "--fold", type=int, default=0, metavar="K", help="with --own-split (default: 0)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="N", help="default: 1")
    parser.add_argument("--no-upper-bound", action="store_true", help="leave the fully labeled trainings out")
    parser.add_argument("--options", default="", help='a variant of the trainers, for example "ema_decay=0.9"')
    add_length_and_network(parser)
    parser.add_argument(
        "--tune-fold", action="store_true", help="with --labeled: validate on fold 1, to choose settings by"
    )
    parser.add_argument(
        "--head", type=int, metavar="LABEL", help="measure the circumference of this label too, as nnunet_ssl hc does"
    )
    parser.add_argument("--experiment", metavar="NAME", help="of one number (default: for example acdc_2d_3patients)")
    parser.add_argument("--repeat-stale", action="store_true", help="run again what other code was finished with")
    add_places_and_machines(parser)


def add_length_and_network(parser: argparse.ArgumentParser) -> None:
    """Declare what makes trainings smaller."""
    parser.add_argument("--steps", type=int, metavar="N", help="of each training (default: nnU-Net's whole schedule)")
    parser.add_argument(
        "--features", type=int, nargs="+", metavar="N", help="features of each stage, instead of the plans'"
    )
    parser.add_argument("--batch-size", type=int, metavar="B", help="instead of the plans'")


def add_places_and_machines(parser: argparse.ArgumentParser) -> None:
    """Declare where is written, and where trained."""
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="checkpoints, logs, report (default: nnUNet_results/DATASET/benchmark)"
    )
    parser.add_argument("--results", metavar="FOLDER", help="files of finished trainings (default: OUTPUT/results)")
    parser.add_argument(
        "-device", "--device", choices=("cpu", "cuda"), help="default: cuda if there is one, or with --slurm"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (default: 1)")
    parser.add_argument("--slurm", action="store_true", help="submit a job array (pip install nnunet_ssl[slurm])")
    parser.add_argument(
        "--slurm-options",
        nargs="+",
        metavar="NAME=VALUE",
        help="of sbatch, as partition=gpu mem=64GB (default: time=24:00:00 cpus_per_task=12 gpus_per_node=1)",
    )
    parser.add_argument("--dry-run", action="store_true", help="train and submit nothing; say what would be")


def run(options: argparse.Namespace) -> int:
    """Run, submit or list what has no result yet, and report."""
    from nnunet_ssl.commands.benchmark_checks import comparison_of, places_of

    comparison = comparison_of(options)
    return compare(comparison, places_of(options, comparison), options)


def compare(comparison: "Comparison", places: "Places", options: argparse.Namespace) -> int:
    """Run, submit or list the trainings of a comparison that have no result yet, and report; 1 if one failed."""
    from nnunet_ssl.benchmarking.planning import plan_runs, without_finished
    from nnunet_ssl.benchmarking.report import report_of
    from nnunet_ssl.benchmarking.running import run_all
    from nnunet_ssl.data.whole_files import replacing

    planned = plan_runs(comparison)
    pending = without_finished(planned, places.results, options.repeat_stale)
    print(f"{len(planned)} runs, {len(planned) - len(pending)} done before; logs in {places.output}", flush=True)
    codes = []
    if options.slurm:
        submit(pending, places, options)
    elif options.dry_run:
        list_pending(pending, places)
    else:
        codes = run_all(pending, places, options.jobs)
    report = report_of(comparison, planned, places.results)
    print(f"\n{report}")
    if not options.dry_run:
        with replacing(places.output / "report.md") as unfinished:
            unfinished.write_text(report, encoding="utf-8")
        print(f"report: {places.output / 'report.md'}; one file for each training: {places.results}")
    return int(any(codes))


def list_pending(pending: "list[Planned]", places: "Places") -> None:
    """Say what would be run."""
    for one in pending:
        split = one.facts["split"]
        cases = f"{split['labeled']} labeled, {split['unlabeled']} unlabeled, {split['validation']} validation cases"
        goes_on = any(places.of(one).glob("results/*/*/fold_0/checkpoint_*.pth"))
        print(f"{one.run.experiment}/{one.run.name}: {cases}" + ("; goes on where it stopped" if goes_on else ""))


def submit(pending: "list[Planned]", places: "Places", options: argparse.Namespace) -> None:
    """Submit trainings that no job has yet as a job array, or with --dry-run write its script."""
    from nnunet_ssl.benchmarking.slurm import Array

    array = Array.of(places, options.slurm_options or [], is_on_gpu=options.device != "cpu")
    in_hand = array.in_hand(pending)
    for one, job in in_hand:
        print(f"{one.run.experiment}/{one.run.name}: {job.state.lower()}, job {job.job_id}")
    known = [one for one, _ in in_hand]
    new = [one for one in pending if one not in known]
    if options.dry_run:
        list_pending(new, places)
    if new and options.dry_run:
        print(f"the script that would be submitted: {array.write_script(new)}")
    elif new:
        jobs = array.submit(new)
        print(f"submitted: {', '.join(jobs)}; this command again prints what is finished")
