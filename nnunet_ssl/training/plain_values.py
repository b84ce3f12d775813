"""What a checkpoint may hold: tensors and plain values, which torch reads back without running any code."""

from collections import Counter, OrderedDict
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TENSORS = (Tensor, nn.Parameter)
AS_THEY_ARE = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.device, torch.dtype, *TENSORS)
MAPPINGS = (dict, OrderedDict, Counter)  # those that torch restores as what they were


def plain_values(content: Any, name: str = "checkpoint") -> Any:  # noqa: ANN401 - whatever a training keeps
    """Return content with numpy's scalars as Python's numbers, and all else as it is.

    Args:
        content: tensors, numbers, texts, and lists, tuples, sets and dictionaries of them.
        name: what messages call it.

    Raises:
        TypeError: something else is among them.
    """
    if isinstance(content, np.generic):
        return content.item()
    if type(content) in AS_THEY_ARE:
        return content
    if isinstance(content, dict):
        kept = copy(content) if type(content) in MAPPINGS else {}  # a state_dict has attributes, too
        kept.clear()
        kept.update({plain_values(key, name): plain_values(one, f"{name}[{key!r}]") for key, one in content.items()})
        return kept
    for kind in (list, tuple, set):
        if isinstance(content, kind):
            return kind(plain_values(one, f"{name}[{number}]") for number, one in enumerate(content))
    raise TypeError(
        f"{name} is a {type(content).__name__}, which no checkpoint can hold: keep tensors, numbers, texts, and lists "
        "and dictionaries of them"
    )
