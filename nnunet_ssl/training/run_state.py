"""What a run needs beyond nnU-Net's checkpoint, under one more key of it, and the options it was started with."""

import os
from collections.abc import Mapping
from typing import Any, Protocol

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.data.trained_cases import CASES
from nnunet_ssl.training.checkpoints import refuse_missing
from nnunet_ssl.training.networks import Networks
from nnunet_ssl.training.options import (
    ENVIRONMENT_VARIABLE,
    Option,
    allowed_options,
    merge_options,
    parse_options,
    settings_of,
)
from nnunet_ssl.training.run_start import RunStart

KEY = "nnunet_ssl"  # of a checkpoint
OF_NNUNET = ("optimizer_state", "init_args", "current_epoch", "logging")
OF_OURS = ("options", "optimizer_steps", "curves")
SPLIT_DIGESTS = ("split", "train_and_val", CASES)  # digests, and the cases themselves


class Stateful(Protocol):
    """What can be kept in a checkpoint: a module, an optimiser, a memory of a method."""

    def state_dict(self) -> dict[str, Any]:
        """Return what there is to keep."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """Restore what `state_dict` returned."""


def given_options(trainer: type) -> dict[str, Option] | None:
    """Return the options of a trainer class that this call of nnU-Net is given; None when it is given none."""
    text = os.environ.get(ENVIRONMENT_VARIABLE, "").strip()
    return parse_options(text, allowed_options(trainer, nnUNetTrainer)) if text else None


def options_at_start(trainer: nnUNetTrainer, folder: str | None, goes_on: bool) -> dict[str, Option]:
    """Return the options of a run that starts: those given, or where it begins again those that it began with.

    Args:
        trainer: not initialised.
        folder: of the run.
        goes_on: whether it is to go on, and has no checkpoint.
    """
    given = given_options(type(trainer))
    start = RunStart.read(folder) if goes_on else None
    return (given or {}) if start is None else options_to_go_on_with(trainer, start.options, given)


def options_to_go_on_with(
    trainer: nnUNetTrainer, stored: Mapping[str, Option], given: Mapping[str, Option] | None
) -> dict[str, Option]:
    """Return the options of a run that goes on: the stored ones; see `merge_options` for other ones."""
    return merge_options(stored, given, settings_of(trainer, nnUNetTrainer))


def pack(networks: Networks, state: Mapping[str, Stateful], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Return our part of a checkpoint.

    Args:
        networks: of the run.
        state: what the method keeps beside them.
        rest: plain values by name.
    """
    return {**rest, **networks.state_dict(), "state": {name: kept.state_dict() for name, kept in state.items()}}


def our_part(checkpoint: Mapping[str, Any], trainer: str) -> dict[str, Any]:
    """Return our part of a checkpoint that a run of the trainer goes on from.

    Raises:
        ValueError: the checkpoint is nnU-Net's own, or lacks something.
    """
    ours = checkpoint.get(KEY)
    if ours is None:
        raise ValueError(
            f"this is a checkpoint of {checkpoint.get('trainer_name')}, not of {trainer}: to start from its weights, "
            f'train without --c and with {ENVIRONMENT_VARIABLE}="init_checkpoint=PATH"'
        )
    refuse_missing(checkpoint, OF_NNUNET, "the checkpoint")
    refuse_missing(ours, OF_OURS, "the checkpoint")
    return ours


def restore(ours: Mapping[str, Any], networks: Networks, state: Mapping[str, Stateful]) -> None:
    """Restore networks and the method's state from our part of a checkpoint."""
    ours = in_todays_form(ours, networks)
    refuse_missing(ours, ("networks", "teachers", "parts", "optimizers", "state"), "the checkpoint")
    here = networks.state_dict() | {"state": state}
    for kind, named in here.items():
        if named.keys() != ours[kind].keys():
            raise ValueError(
                f"the checkpoint has the {kind} {_words(ours[kind])}, and this trainer {_words(named)}: go on with the "
                "version of the trainer that began the run, or train again without --c"
            )
    networks.load_state_dict(ours)
    for name, kept in state.items():
        kept.load_state_dict(ours["state"][name])


def in_todays_form(ours: Mapping[str, Any], networks: Networks) -> Mapping[str, Any]:
    """Return our part of a checkpoint with its networks by their roles.

    In earlier checkpoints they stand side by side in `parts`: the first one as student, then a teacher, or a second one
    with its optimiser.
    """
    if "networks" in ours or "parts" not in ours:
        return ours
    before = dict(ours["parts"])
    first, *others = networks.networks
    expected = ["student", *others, *networks.teachers, *(f"{name}_optimizer" for name in others)]
    refuse_missing(before, expected, "the checkpoint")
    trained = {first: before["student"], **{name: before[name] for name in others}}
    optimizers = {name: before[f"{name}_optimizer"] for name in others}
    teachers = {name: before[name] for name in networks.teachers}
    return {**ours, "networks": trained, "optimizers": optimizers, "teachers": teachers, "parts": {}, "state": {}}


def _words(named: Mapping[str, object]) -> str:
    return ", ".join(named) or "none"
