"""One file = one class = one `-tr` name = one paper.

`from nnunet_ssl.trainers import nnUNetTrainerBCP` gives the class, not the module of its name.
"""

import sys
from types import ModuleType

import nnunet_ssl.training  # noqa: F401 - says in one sentence when nnU-Net has the wrong version, before all else


class _TrainersPackage(ModuleType):
    """Holds the trainer where Python's import system enters the module of its name."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, getattr(value, name, value) if isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _TrainersPackage
