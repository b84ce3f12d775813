"""Networks that plans describe: one that cannot be built is said with the file, before anything is made."""

import copy

import pytest

from nnunet_ssl.data.architectures import refuse_unbuildable
from tests.conftest import Case


@pytest.fixture
def plans():
    return copy.deepcopy(Case().plans())


def test_network_of_plans_can_be_built(plans):
    refuse_unbuildable(plans, "3d_fullres", "nnUNetPlans.json")


@pytest.mark.parametrize(
    ("key", "value"), [("features_per_stage", [4, "0", 8]), ("strides", [[1, 1, 1]]), ("kernel_sizes", None)]
)
def test_network_that_cannot_be_built_is_refused(plans, key, value):
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"][key] = value
    with pytest.raises(
        ValueError, match=r"nnUNetPlans.json: the network of configuration '3d_fullres' cannot be built"
    ):
        refuse_unbuildable(plans, "3d_fullres", "nnUNetPlans.json")
