"""Whether images fit the data set that they are preprocessed for, by their headers; no voxel is read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ssl.data.image_headers import Header, header_of, times
from nnunet_ssl.data.memory import memory_limit
from nnunet_ssl.data.raw_files import channel_names

GIB = 2**30
MOST_TIMES_SPACING = 100.0  # that a voxel is larger or smaller than those of the data set; ours
BYTES_OF_VALUE = 4
# Of a case in nnU-Net's preprocessing: measured to be 0.3 to 1.1 of the real peak, so that what is refused cannot go.
IMAGES_BEFORE, BYTES_OF_RESAMPLED_VOXEL = 3, 28


def refuse_unfit(
    files: Sequence[Path], plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict
) -> None:
    """Look at the headers of the files of a case.

    Args:
        files: its channels.
        plans: nnU-Net's.
        configuration: that they are preprocessed for.
        dataset_json: nnU-Net's.

    Raises:
        ValueError: the case is of no use, in words for whoever has the images.
    """
    if issubclass(plans.image_reader_writer_class, NaturalImage2DIO):
        return
    channels = len(channel_names(dataset_json))
    headers = {file: header for file in files if (header := checked_header(file, channels)) is not None}
    if not headers:
        return
    first = next(iter(headers.values()))
    for file, header in headers.items():
        if header.size != first.size:
            raise ValueError(f"its channels differ in size: {file.name} has {times(header.size)} voxels")
        if not np.allclose(header.spacing, first.spacing, rtol=1e-3):
            raise ValueError(f"its channels differ in voxel size: {file.name} has {times(header.spacing)} mm")
    problem = problem_with_plans(first, plans)
    if problem is None and len(first.size) > 2:
        before, after = shapes_of(first, plans, configuration)
        problem = thinness_problem(first, after, configuration) or memory_problem(first, before, after, channels)
    if problem:
        raise ValueError(problem)


def checked_header(file: Path, channels: int) -> Header | None:
    """Return the header of a file; a ValueError names the file if it is of no use, None where it says nothing."""
    if not file.is_file():
        raise ValueError(f"{file.name} is no file but a folder, a pipe, or a link that leads nowhere")
    try:
        header = header_of(file)
        problem = None if header is None else header.problem(channels)
    except ValueError as error:
        raise ValueError(f"{file.name} is cut off or damaged, or no image: {error}") from error
    if problem:
        raise ValueError(f"{file.name}: {problem}")
    return header


def problem_with_plans(header: Header, plans: PlansManager) -> str | None:
    """Return why an image is no image of a data set, by its size and spacing; None if it may be one."""
    size, spacing = _median(plans, "shape"), _median(plans, "spacing")
    if size is None or spacing is None:
        return None
    if len(header.size) == 2 and size[0] > 1.5:
        return f"it is a single slice, and the data set has volumes, of {size[0]:.0f} slices as a rule"
    if len(header.size) > 2 and header.size[2] > 1 and size[0] < 1.5:
        return f"it has {header.size[2]} slices, and the data set has single ones"
    compared = len(header.spacing) if size[0] > 1.5 else 2  # a single slice has no thickness
    ratios = np.array(header.spacing[:compared]) / spacing[::-1][:compared]
    if max(ratios.max(), 1 / ratios.min()) > MOST_TIMES_SPACING:
        known = times(spacing[::-1][:compared])
        return f"its voxels are {times(header.spacing)} mm, those of the data set {known} mm: its header is wrong"
    return None


def shapes_of(header: Header, plans: PlansManager, configuration: ConfigurationManager) -> tuple[list[int], list[int]]:
    """Return the size of a volume along the plans' axes, and what it becomes when it is resampled."""
    size, spacing = [*header.size[:3]][::-1], [*header.spacing][::-1]
    size, spacing = ([values[axis] for axis in plans.transpose_forward] for values in (size, spacing))
    target = list(configuration.spacing)
    target = [*spacing[: 3 - len(target)], *target]
    return size, [int(length) for length in compute_new_shape(size, spacing, target)]


def thinness_problem(header: Header, after: Sequence[int], configuration: ConfigurationManager) -> str | None:
    """Return why nothing is left of an image when it is resampled; None if something is."""
    if all(after):
        return None
    known = times([*configuration.spacing][::-1])
    return (
        f"it is too thin: its {times(header.size)} voxels of {times(header.spacing)} mm are less than half a voxel of "
        f"the data set, of {known} mm"
    )


def memory_problem(header: Header, before: Sequence[int], after: Sequence[int], channels: int) -> str | None:
    """Return why an image is too large to be preprocessed on this machine; None if it may go."""
    limit = memory_limit()
    if limit is None:
        return None
    read, made = np.prod(before, dtype=float), np.prod(after, dtype=float)
    needed = channels * BYTES_OF_VALUE * (IMAGES_BEFORE * read + made) + BYTES_OF_RESAMPLED_VOXEL * made
    if needed <= limit:
        return None
    return (
        f"it is too large: its {times(header.size)} voxels of {times(header.spacing)} mm become {made / 1e6:.0f} "
        f"million when it is preprocessed, which needs {needed / GIB:.0f} GiB of memory, and there are "
        f"{limit / GIB:.0f}. Look whether the voxel size in its header is right"
    )


def _median(plans: PlansManager, what: str) -> list[float] | None:
    """Return the median shape or spacing of a data set along z, y, x; None where the plans do not say."""
    values = plans.plans.get(f"original_median_{what}_after_transp")
    order = plans.transpose_forward
    if not isinstance(values, list) or len(values) != 3 or sorted(order) != [0, 1, 2]:
        return None
    return [float(values[order.index(axis)]) for axis in range(3)]
