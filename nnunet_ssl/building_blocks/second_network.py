"""Another architecture from the same plans, so that two networks see with different eyes."""

from collections.abc import Mapping
from typing import Any

PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
# nnU-Net's own numbers: its residual-encoder planner, and its default planner.
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6, 6)
PLAIN_CONVOLUTIONS = 2


def other_architecture(name: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return class name and arguments of the residual-encoder U-Net for a plain one, and of a plain one for that.

    Stages, features, strides and kernels stay as planned; blocks and convolutions are as many as nnU-Net's planners
    take.

    Args:
        name: full name of the class in nnU-Net's plans.
        arguments: its arguments in the plans.

    Raises:
        ValueError: an architecture that is neither of the two.
    """
    module, _, architecture = name.rpartition(".")
    kept = {key: value for key, value in arguments.items() if not key.startswith(("n_conv_per", "n_blocks_per"))}
    stages = arguments["n_stages"]
    if architecture == PLAIN:
        blocks = {"n_blocks_per_stage": RESIDUAL_BLOCKS[:stages], "n_conv_per_stage_decoder": (1,) * (stages - 1)}
        return f"{module}.{RESIDUAL}", kept | blocks
    if architecture == RESIDUAL:
        convolutions = (PLAIN_CONVOLUTIONS,) * stages
        return f"{module}.{PLAIN}", kept | {
            "n_conv_per_stage": convolutions,
            "n_conv_per_stage_decoder": convolutions[1:],
        }
    raise ValueError(f"second_architecture=other is for {PLAIN} and {RESIDUAL}, and the plans have {architecture}")
