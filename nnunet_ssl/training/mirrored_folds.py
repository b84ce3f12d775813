"""Whether the folds of a model are mirrored alike: nnU-Net predicts all of them as the first one."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from nnunet_ssl.training.checkpoints import load_facts

Axes = tuple[int, ...]


def mirrored_axes(checkpoints: Iterable[Path]) -> Axes | None:
    """Return along which axes a run is mirrored, by the first of its checkpoints that can be read; None if none can."""
    for file in checkpoints:
        try:
            return tuple(load_facts(file).get("inference_allowed_mirroring_axes") or ())
        except (OSError, ValueError, TypeError):
            continue
    return None


def axes_of_all(axes: Mapping[str, Axes]) -> Axes:
    """Return the axes along which every fold is mirrored, given those of at least one."""
    return tuple(sorted(set.intersection(*map(set, axes.values()))))


def different_axes(axes: Mapping[str, Axes]) -> str:
    """Return in words which folds are mirrored along which axes, if they differ; nothing if they do not."""
    if len({frozenset(one) for one in axes.values()}) < 2:
        return ""
    each = (f"fold {fold} along {', '.join(map(str, one)) or 'none'}" for fold, one in sorted(axes.items()))
    return f"the folds mirror along different axes: {'; '.join(each)}"


def how_to_predict(axes: Mapping[str, Axes]) -> str:
    """Return what to do about folds that are mirrored along different axes."""
    fewest = [fold for fold, one in sorted(axes.items()) if {*one} == {*axes_of_all(axes)}]
    remedy = f"name fold {fewest[0]} first, which has the fewest" if fewest else "predict with --disable_tta"
    return f"nnUNetv2_predict takes for all of them those of the first that -f names: {remedy}"
