"""nnU-Net's plans of a data set, and the configurations in them."""

from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ssl.data.dataset_names import planning_command
from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.raw_files import read_json_file

KEYS = (
    "dataset_name",
    "plans_name",
    "configurations",
    "image_reader_writer",
    "transpose_forward",
    "foreground_intensity_properties_per_channel",
)
KEYS_OF_CONFIGURATION = (
    "data_identifier",
    "preprocessor_name",
    "patch_size",
    "batch_size",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
)


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
    except ValueError as error:
        return str(error)
    if lacking := [key for key in KEYS if key not in plans]:
        return f"{file} has no key {lacking[0]!r}"
    if not isinstance(plans["configurations"], dict) or not plans["configurations"]:
        return f"{file} has no configurations"
    if plans["dataset_name"] != file.parent.name:  # by which nnU-Net finds preprocessed cases and results
        return f"{file} is of data set {plans['dataset_name']!r}, which was renamed or copied since"
    manager = PlansManager(plans)
    for name in manager.available_configurations:
        try:
            configuration = manager.get_configuration(name).configuration
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            return f"{file}: configuration {name!r} is damaged ({error})"
        if lacking := [key for key in KEYS_OF_CONFIGURATION if key not in configuration]:
            return f"{file}: configuration {name!r} has no key {lacking[0]!r}"
    try:
        DatasetReader.of_plans(plans)
    except ValueError as error:
        return f"{file}: {error}"
    return None


def other_plans(file: Path) -> list[str]:
    """Return the identifiers of other plans beside a file."""
    return sorted(other.stem for other in file.parent.glob("*Plans*.json") if other != file)


def configurations_of(plans: PlansManager) -> dict[str, ConfigurationManager]:
    """Return the configurations that can be trained semi-supervised: all but the second stages of cascades."""
    all_of_them = {name: plans.get_configuration(name) for name in plans.available_configurations}
    return {name: one for name, one in all_of_them.items() if one.previous_stage_name is None}
