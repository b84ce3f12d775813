"""What is not finite in a run: the cases behind such losses, and weights that no checkpoint may hold."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nnunet_ssl.data.raw_files import some
from nnunet_ssl.training import distributed
from nnunet_ssl.training.step import Outcome

WEIGHTS = ("networks", "teachers", "parts")  # of our part of a checkpoint; what a method keeps may hold infinity


class Suspects:
    """Cases that were in a batch whose loss was not finite: in each group is one that all its batches have in common.

    Attributes:
        groups: of cases; each has at least one.
    """

    def __init__(self) -> None:
        self.groups: list[set[str]] = []

    def add(self, cases: Sequence[str]) -> bool:
        """Take the cases of a batch; return whether none of them was a suspect before."""
        for group in self.groups:
            if group & {*cases}:
                group &= {*cases}
                return False
        if cases:
            self.groups.append({*cases})
        return True

    def add_step(self, outcome: Outcome, labeled: Sequence[str], unlabeled: Sequence[str], where: str) -> str:
        """Take a step that was skipped, in all processes; return a sentence if its cases are new ones, or nothing.

        Args:
            outcome: of the step.
            labeled: cases of the batch, here.
            unlabeled: the same.
            where: epoch and step.
        """
        if outcome.losses_here_are_finite and not outcome.losses_are_finite:
            labeled, unlabeled = (), ()
        terms = [f"{name} is {loss}" for name, loss in outcome.losses.items() if not math.isfinite(loss)]
        terms, labeled, unlabeled = map(distributed.union_over_processes, (terms, labeled, unlabeled))
        if not self.add([*labeled, *unlabeled]):
            return ""
        what = ", ".join(terms) or "the gradient is not finite"
        return (
            f"WARNING: {where}: {what}; the step is skipped. In its batch were the labeled cases {_listed(labeled)} "
            f"and the unlabeled cases {_listed(unlabeled)}. Look at their images, and take a bad one out of imagesUn, "
            "or out of train in splits_final.json; if others are named each time, lower initial_lr"
        )

    def names(self) -> str:
        """Return the suspects."""
        return some(sorted(set().union(*self.groups)))


def refuse_nonfinite(network: Mapping[str, Tensor], ours: Mapping[str, Mapping], epoch: int) -> None:
    """Check the weights that a checkpoint would hold; the device is waited for once.

    Args:
        network: that predicts.
        ours: our part of the checkpoint.
        epoch: how many are over.

    Raises:
        RuntimeError: one is not finite. Such weights never become finite again.
    """
    named = {"network": network}
    named |= {name: weights for kind in WEIGHTS for name, weights in ours[kind].items()}
    floats = {name: [leaf for leaf in tree_leaves(dict(one)) if _is_of_floats(leaf)] for name, one in named.items()}
    finite = [torch.stack([one.isfinite().all() for one in found]).all() for found in floats.values() if found]
    values = torch.stack(finite).tolist()
    names = [name for name, found in floats.items() if found]
    if bad := [name for name, is_finite in zip(names, values, strict=True) if not is_finite]:
        raise RuntimeError(
            f"after {epoch} epochs the weights of the {' and the '.join(bad)} are not finite: no checkpoint is written "
            "over one from before. Look at the cases that are named above, or lower initial_lr, and go on with --c"
        )


def _is_of_floats(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _listed(cases: Sequence[str]) -> str:
    return ", ".join(cases) or "none"
