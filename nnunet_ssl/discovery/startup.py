"""What the start-up files `nnunet_ssl.pth` and `nnunet_ssl.start` run at every interpreter start."""

import os

SHIM_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shim")


def register() -> None:
    """Append our folder to `nnUNet_extTrainer`, where nnU-Net looks for trainers that are not its own.

    The user's own value is kept and searched first. `NNUNET_SSL_DISCOVERY=0` switches this off.
    """
    if os.environ.get("NNUNET_SSL_DISCOVERY") == "0":
        return
    folders = [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if folder]
    if SHIM_FOLDER not in folders:
        os.environ["nnUNet_extTrainer"] = os.pathsep.join([*folders, SHIM_FOLDER])
