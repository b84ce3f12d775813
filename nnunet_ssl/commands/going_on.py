"""How a training of a data set goes on after more of its cases are labeled: from the model that was trained last."""

import os
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

FINAL = "checkpoint_final.pth"
DEFAULT_PLANS = "nnUNetPlans"  # of nnU-Net, where -p names none
FIRST_CHOICE = "nnUNetTrainerSSL"  # README.md recommends it


def how_to_go_on(dataset: str, preprocessed: Path) -> Iterator[str]:
    """Give the commands that train from the newest finished training, or where there is none from the beginning."""
    from nnunet_ssl.data.dataset_names import planning_command
    from nnunet_ssl.data.plans_file import configurations_of, plans_in, read_plans
    from nnunet_ssl.evaluation.runs import read_checkpoint

    for final in finished_trainings(dataset):
        try:
            checkpoint = read_checkpoint(final)
        except ValueError:
            continue
        yield from from_model(dataset, final, checkpoint)
        return
    configurations, named = ["3d_fullres"], DEFAULT_PLANS
    if found := plans_in(preprocessed):
        plans = min(found, key=lambda file: file.stem != DEFAULT_PLANS)
        configurations, named = list(configurations_of(read_plans(plans))), plans.stem
    else:
        yield f"next: {planning_command(dataset)}"
    configuration = "3d_fullres" if "3d_fullres" in configurations else configurations[0]
    of_data = f"{quote(dataset)} {quote(configuration)} 0"
    if named == DEFAULT_PLANS:
        yield f"then train: nnUNetv2_train {of_data} -tr {FIRST_CHOICE}"
    else:
        yield f"then train: nnUNetv2_train {of_data} -tr {FIRST_CHOICE} -p {quote(named)}"


def finished_trainings(dataset: str) -> list[Path]:
    """Return the final checkpoints of all trainings of a data set, the newest first."""
    files = [folder / FINAL for folder in folders_of_trainings(dataset) if (folder / FINAL).exists()]
    return sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)


def folders_of_trainings(dataset: str) -> list[Path]:
    """Return the folders of all trainings of a data set, one for each fold."""
    from nnunet_ssl.commands.trained_models import FOLD

    if not os.environ.get("nnUNet_results"):
        return []
    folders = Path(os.environ["nnUNet_results"], dataset).absolute().glob("*__*__*/fold_*")
    return sorted(folder for folder in folders if FOLD.fullmatch(folder.name.removeprefix("fold_")))


def from_model(dataset: str, final: Path, checkpoint: dict) -> Iterator[str]:
    """Give the commands that put a trained fold aside and train it again from its weights.

    It is put aside because a training that is interrupted goes on, with --c, from a final checkpoint in its folder.
    """
    from nnunet_ssl.commands.trained_models import parts_of

    trainer, plans, configuration = parts_of(final.parent.parent.name)
    aside = free_name(final.parent)
    fold, weights = final.parent.name.removeprefix("fold_"), str(aside / FINAL)
    of_data = f"{quote(dataset)} {quote(configuration)} {fold}"
    yield "go on from the model that was trained last, and put it aside first, so that both are kept:"
    yield f"mv {quote(str(final.parent))} {quote(str(aside))}"
    if "nnunet_ssl" not in checkpoint:  # nnU-Net's own trainers have no options
        yield f"nnUNetv2_train {of_data} -tr {quote(trainer)} -p {quote(plans)} -pretrained_weights {quote(weights)}"
        return
    options = {"init_checkpoint": weights} | {
        name: value for name, value in checkpoint["nnunet_ssl"].get("options", {}).items() if name != "init_checkpoint"
    }
    text = " ".join(f"{name}={quote(str(value))}" for name, value in options.items())
    yield f"nnUNet_ssl_options={in_quotes(text)} nnUNetv2_train {of_data} -tr {quote(trainer)} -p {quote(plans)}"


def free_name(folder: Path) -> Path:
    """Return a place beside a fold whose name nnU-Net does not take for a fold: former_fold_0, former_fold_0_2, ..."""
    number, place = 2, folder.with_name(f"former_{folder.name}")
    while place.exists():
        number, place = number + 1, folder.with_name(f"former_{folder.name}_{number}")
    return place


def in_quotes(text: str) -> str:
    """Return a text in quotation marks of a shell, double ones where that is possible."""
    return quote(text) if any(sign in text for sign in '"$`\\!') else f'"{text}"'
