"""nnU-Net's plans of a data set, and the configurations in them."""

from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ssl.data.architectures import refuse_other_than_modules, refuse_unbuildable
from nnunet_ssl.data.dataset_names import planning_command
from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.json_schemas import Configuration, Plans, refuse_unfit
from nnunet_ssl.data.raw_files import read_json_file


def read_plans(file: Path) -> PlansManager:
    """Return the plans of a data set, from its folder in nnUNet_preprocessed.

    Raises:
        ValueError: as `plans_problem` says, with the command that fixes it.
    """
    if problem := plans_problem(file):
        others = [] if file.exists() else other_plans(file)
        instead = f" (or -p {' or -p '.join(others)})" if others else ""
        raise ValueError(f"{problem}: {planning_command(file.parent.name, file.stem)}{instead}")
    return PlansManager(read_json_file(file))


def plans_problem(file: Path) -> str | None:
    """Return what is wrong with the plans of a data set: missing, damaged, of another data set; None if nothing is."""
    try:
        plans = read_json_file(file)
        refuse_unfit(plans, Plans, file)
        if plans["dataset_name"] != file.parent.name:  # by which nnU-Net finds preprocessed cases and results
            return f"{file} is of data set {plans['dataset_name']!r}, which was renamed or copied since"
        for name in plans["configurations"]:
            refuse_bad_configuration(plans, name, file)
    except ValueError as error:
        return str(error)
    try:
        DatasetReader.of_plans(plans)
    except ValueError as error:
        return f"{file}: {error}"
    return None


def refuse_bad_plans(plans: dict, configuration: str, file: str | Path) -> None:
    """Raise a ValueError if plans, or one of their configurations, are not what nnU-Net expects."""
    refuse_unfit(plans, Plans, file)
    refuse_bad_configuration(plans, configuration, file)
    refuse_unbuildable(plans, configuration, str(file))


def refuse_bad_configuration(plans: dict, configuration: str, file: str | Path) -> None:
    """Raise a ValueError if a configuration, with what it inherits, is not what nnU-Net expects."""
    try:
        content = PlansManager(plans).get_configuration(configuration).configuration
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{file}: configuration {configuration!r} is damaged ({error})") from error
    refuse_unfit(content, Configuration, f"{file}: configuration {configuration!r}")
    refuse_other_than_modules(plans, configuration, str(file))


def other_plans(file: Path) -> list[str]:
    """Return the identifiers of other plans beside a file."""
    return sorted(other.stem for other in file.parent.glob("*Plans*.json") if other != file)


def plans_in(preprocessed: Path) -> list[Path]:
    """Return the plans of a data set's folder that nothing is wrong with, in the order of their names."""
    return [file for file in sorted(preprocessed.glob("*.json")) if plans_problem(file) is None]


def configurations_of(plans: PlansManager) -> dict[str, ConfigurationManager]:
    """Return the configurations by name, the second stages of cascades last."""
    all_of_them = {name: plans.get_configuration(name) for name in plans.available_configurations}
    return dict(sorted(all_of_them.items(), key=lambda named: named[1].previous_stage_name is not None))


def configurations_to_preprocess(plans: PlansManager) -> list[str]:
    """Return the configurations whose cases lie in folders of their own: the second stages of cascades have none."""
    return [name for name, one in configurations_of(plans).items() if one.previous_stage_name is None]


def model_of_stage(model: Path, configuration: str) -> Path:
    """Return the folder of the same trainer's model of another configuration, given that of one in nnUNet_results."""
    return model.with_name(f"{model.name.rpartition('__')[0]}__{configuration}")
