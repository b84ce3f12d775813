"""What plans may name for a network: nnU-Net imports any name it finds there and calls it with arguments of the plans.

`"nonlin": "os.system", "nonlin_kwargs": {"command": ...}` would be a command of whoever made the plans.
"""

import pydoc
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn


def refuse_other_than_modules(plans: dict[str, Any], configuration: str, whose: str) -> None:
    """Check that a configuration of plans names nothing but classes of modules for its network.

    Args:
        plans: nnU-Net's; they are not changed.
        configuration: its name.
        whose: the file, for the message.

    Raises:
        ValueError: it names something else, or nothing.
    """
    try:
        settings = PlansManager(plans).get_configuration(configuration)
        arguments = settings.network_arch_init_kwargs
        named = {key: arguments[key] for key in settings.network_arch_init_kwargs_req_import}
        named = {"network_class_name": settings.network_arch_class_name} | named
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{whose}: configuration {configuration!r} is damaged ({error})") from error
    for key, name in named.items():
        if name is not None and not is_module_class(name):
            raise ValueError(
                f"{whose}: configuration {configuration!r} has {name!r:.80} for {key!r}, which is no class of torch's "
                "modules and is not called: plan anew, or get the file from somebody you trust"
            )


def refuse_unbuildable(plans: dict[str, Any], configuration: str, whose: str) -> None:
    """Build the network of a configuration without memory for its weights.

    Args:
        plans: nnU-Net's, which name classes of modules alone.
        configuration: its name.
        whose: the file, for the message.

    Raises:
        ValueError: it cannot be built.
    """
    settings = PlansManager(plans).get_configuration(configuration)
    named = settings.network_arch_class_name, settings.network_arch_init_kwargs
    try:
        with torch.device("meta"):
            get_network_from_plans(*named, settings.network_arch_init_kwargs_req_import, 1, 2, allow_init=False)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{whose}: the network of configuration {configuration!r} cannot be built ({what:.200}): plan anew"
        ) from error


def is_module_class(name: object) -> bool:
    """Return whether a dotted name is that of a class of modules; one that is nowhere, nnU-Net looks for itself."""
    if not isinstance(name, str):
        return False
    try:
        found = pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        return False
    return found is None or (isinstance(found, type) and issubclass(found, nn.Module))
