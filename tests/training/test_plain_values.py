import collections

import numpy as np
import pytest
import torch

from nnunet_ssl.training.plain_values import plain_values
from nnunet_ssl.training.safe_loading import load_without_code


def test_numbers_of_numpy_become_pythons():
    found = plain_values({"log": [np.float32(0.5), (np.int64(3), np.bool_(True))], np.int64(1): {np.str_("a")}})
    assert found == {"log": [0.5, (3, True)], 1: {"a"}}
    assert [type(one) for one in (found["log"][0], *found["log"][1])] == [float, int, bool]
    assert [type(key) for key in found] == [str, int]
    assert type(next(iter(found[1]))) is str


def test_what_torch_reads_back_stays_what_it_is(tmp_path):
    state = torch.nn.BatchNorm1d(2).state_dict()
    content = {
        "state": state,
        "counts": collections.Counter("aab"),
        "more": [
            None,
            1j,
            b"x",
            torch.Size([2]),
            torch.device("cpu"),
            torch.float16,
            torch.nn.Parameter(torch.ones(1)),
        ],
        "defaults": collections.defaultdict(list, a=[1]),
    }
    torch.save(plain_values(content), tmp_path / "file")
    found = torch.load(tmp_path / "file", weights_only=True)
    assert found["state"]._metadata == state._metadata
    assert [type(one) for one in found["more"]] == [type(one) for one in content["more"]]
    assert found["counts"] == content["counts"]
    assert type(found["counts"]) is collections.Counter
    assert found["defaults"] == {"a": [1]}
    assert load_without_code(tmp_path / "file", torch.device("cpu"))["more"][3] == torch.Size([2])


def test_content_is_not_changed():
    content = collections.OrderedDict(a=[np.float64(1)])
    plain_values(content)
    assert type(content["a"][0]) is np.float64


@pytest.mark.parametrize("odd", [np.ones(2), object(), print, torch.nn.Linear(1, 1)])
def test_something_else_is_named_with_its_place(odd):
    with pytest.raises(TypeError, match=rf"memory\['kept'\]\[1\] is a {type(odd).__name__}, which no checkpoint can"):
        plain_values({"kept": [0, odd]}, "memory")
