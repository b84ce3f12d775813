"""The one module in the folder that `nnUNet_extTrainer` names.

nnU-Net imports every module of such a folder, asks each for the trainer's name and forgets the modules afterwards. A
trainer defined here would be another class at every lookup; one that is only fetched from here stays the same.
"""


def __getattr__(name: str) -> type:
    """Import the one trainer asked for, so that a broken file or a missing package does not hide the others."""
    if not name.startswith("nnUNetTrainer"):
        raise AttributeError(name)
    try:
        from nnunet_ssl.discovery.variants import find_trainer
    except ModuleNotFoundError as error:
        # A child process may run in another environment, which inherits the variable but not this package.
        if error.name != "nnunet_ssl":
            raise
        raise AttributeError(name) from error
    return find_trainer(name)
