"""Show what a trained network learns from: views, pseudo-labels and accepted voxels of some unlabeled patches.

The picture is made with the settings, augmentation and weights of a checkpoint. In a training the option previews=true
makes one every 50 epochs and in the last, in the folder `previews` beside the checkpoints.

Of self-training, which learns from predictions of whole scans, it shows what the network predicts of the patches now.
"""

import argparse
import os

from nnunet_ssl.commands.outputs import output_file
from nnunet_ssl.commands.trained_models import (
    add_device_argument,
    away_from_results,
    device_of,
    model_checkpoint,
    refuse_damaged_plans,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, as nnUNetv2_train has them."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set: id or name")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: 3d_fullres")
    parser.add_argument("-tr", required=True, metavar="TRAINER")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("-f", default="0", metavar="FOLD", help="fold, or all (default: 0)")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: checkpoint_final.pth")
    add_device_argument(parser)
    parser.add_argument("-o", default="preview.png", metavar="FILE", help="the picture to write (default: preview.png)")


def run(options: argparse.Namespace) -> int:
    """Draw one batch of unlabeled patches."""
    from nnunet_ssl.commands.preprocess import check_environment

    check_environment()
    target = output_file(options.o)
    name, checkpoint = model_checkpoint(options)
    refuse_damaged_plans(name, options.p)
    os.environ["nnUNet_n_proc_DA"] = "0"  # for one batch no worker processes
    os.environ.pop("nnUNet_ssl_options", None)  # those of the checkpoint count

    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    from nnunet_ssl.data.loaders import batches_on_device, close_loader
    from nnunet_ssl.training.checkpoints import load_model
    from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer

    if "nnunet_ssl" not in load_model(checkpoint):
        raise ValueError(f"{checkpoint} is of no semi-supervised training: it learned nothing from unlabeled scans")
    device = torch.device(device_of(options))
    fold = options.f if options.f == "all" else int(options.f)
    with away_from_results():
        trainer = get_trainer_from_args(name, options.c, fold, options.tr, options.p, device=device)
        if not isinstance(trainer, SemiSupervisedTrainer):
            raise ValueError(f"{options.tr} is not semi-supervised: it learns nothing from unlabeled scans")
        trainer.look_for_first_stage_beside(checkpoint.parent.parent)
        trainer.load_checkpoint(str(checkpoint))
        loaders = trainer.get_dataloaders()
        try:
            _, unlabeled = batches_on_device(next(loaders[0]), device)
        finally:
            for loader in loaders:
                close_loader(loader)
    if not unlabeled.keys:
        raise ValueError(f"{checkpoint} is from the labeled-only warm-up, which learns nothing from unlabeled images")
    trainer.draw_preview(unlabeled, target)
    print(f"{target}: {', '.join(unlabeled.keys)}")
    return 0
