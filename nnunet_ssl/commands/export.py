"""Write a trained model as a zip from which plain nnU-Net predicts, without this package.

Of a cascade it is the model of one stage: the first stage is exported by itself, with -c 3d_lowres for example.

The zip holds the weights that the training predicts with, the plans and what prediction reads of dataset.json: no
optimiser, no host names, paths or case ids; of two networks the first, with --ensemble both, as folds of one model or,
where their architectures differ, as two models.
nnUNetv2_install_pretrained_model_from_zip installs it; unpacked, nnUNetv2_predict_from_modelfolder predicts with it.
Inside it is a model of nnUNetTrainer; the name of its plans says which trainer made it, so that it does not take the
place of the receiver's own.
"""

import argparse
from inspect import signature
from pathlib import Path
from shlex import quote

from nnunet_ssl.commands.outputs import output_file

PREVIOUS_STAGE = "-prev_stage_predictions"  # of nnUNetv2_predict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, as nnUNetv2_predict has them."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set: id or name")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION")
    parser.add_argument("-tr", required=True, metavar="TRAINER")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    parser.add_argument("-f", nargs="+", default=["0"], metavar="FOLD", help="folds, or all (default: 0)")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: checkpoint_final.pth")
    parser.add_argument("-o", required=True, metavar="FILE", help="the zip to write")
    parser.add_argument("--ensemble", action="store_true", help="both networks of a method that has two")
    parser.add_argument("--overwrite", action="store_true", help="replace the zip if it exists")


def run(options: argparse.Namespace) -> int:
    """Write the zip and say how it is used."""
    target = output_file(options.o)
    if target.exists() and not options.overwrite:
        raise ValueError(f"{target} exists: replace it with --overwrite, or name another with -o")

    from nnunet_ssl.commands.trained_models import checkpoint_of, model_folder
    from nnunet_ssl.training.mirrored_folds import axes_of_all, different_axes, mirrored_axes
    from nnunet_ssl.training.model_export import export_model, exported_names

    dataset, model = model_folder(options)
    axes = {fold: mirrored_axes([checkpoint_of(model, fold, options.chk)]) or () for fold in options.f}
    if len(set(options.f)) < len(options.f):
        raise ValueError(f"-f names a fold twice: {' '.join(options.f)}")
    refuse_own_architecture(options.tr, model, dataset)
    names = exported_names(options.tr, options.p)
    models = export_model(model, options.f, options.chk, dataset, names, target, options.ensemble)
    print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB, without optimiser, host names, paths and case ids\n")
    if differ := different_axes(axes):
        kept = ", ".join(map(str, axes_of_all(axes))) or "none"
        print(f"{differ}. The exported model predicts with those of all: {kept}\n")
    print(f"nnUNetv2_install_pretrained_model_from_zip {quote(target.name)}")
    if len(models) == 1:
        outputs, more = ["OUT"], []
    else:
        outputs, more = [f"OUT_{i + 1}" for i in range(len(models))], ["--save_probabilities"]
        print("\nThe networks differ in architecture. Predict with each, then average what they predict:\n")
    previous = previous_stage(model, options.c)
    for (one, folds), output in zip(models.items(), outputs, strict=True):
        prediction = (
            f"nnUNetv2_predict -d {quote(dataset)} -c {quote(options.c)} -tr {one.trainer} -p {quote(one.plans)} "
            f"-f {' '.join(folds)} -chk {one.checkpoint} -i IMAGES -o {output}"
        )
        prediction += f" {PREVIOUS_STAGE} OUT_BEFORE" if previous else ""
        print(" ".join((prediction, *more)))
    if more:
        print(f"nnUNetv2_ensemble -i {' '.join(outputs)} -o OUT")
    if previous:
        print(
            f"\nOUT_BEFORE is what {previous}, the previous stage, has predicted: export that model too, -c {previous}"
        )
    return 0


def refuse_own_architecture(trainer: str, model: Path, dataset: str) -> None:
    """Raise a ValueError if a trainer builds a network of its own, which plain nnU-Net does not know."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_ssl.training.model_export import arguments_of_network, built_by, trained_model

    try:
        build = recursive_find_trainer_class_by_name(trainer).build_network_architecture
    except RuntimeError:  # nnU-Net does not find it: the weights alone can be compared
        return
    if build is nnUNetTrainer.build_network_architecture:
        return
    trained = trained_model(model, dataset, ())
    if "plans_manager" in signature(build).parameters:  # otherwise it is of an older nnU-Net
        with torch.device("meta"):
            own = build(*arguments_of_network(trained.plans, trained), False)
        if repr(own) == repr(built_by(trained.plans, trained)):
            return
    raise ValueError(
        f"{trainer} builds a network of its own, and plain nnU-Net that of the plans: hand on {model} and the file of "
        "the trainer instead"
    )


def previous_stage(model: Path, configuration: str) -> str | None:
    """Return the configuration whose predictions a model's own takes as inputs; None if it takes none."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(str(model / "plans.json")).get_configuration(configuration).previous_stage_name
