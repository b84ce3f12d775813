import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ssl.building_blocks.second_network import other_architecture
from tests.conftest import Case

IMPORTS = ["conv_op", "norm_op", "dropout_op", "nonlin"]


@pytest.mark.parametrize("residual", [False, True])
def test_the_other_architecture_can_be_built_and_fits_the_same_patch(residual):
    architecture = Case(residual=residual).plans()["configurations"]["3d_fullres"]["architecture"]
    name, arguments = other_architecture(architecture["network_class_name"], architecture["arch_kwargs"])
    assert name.endswith("PlainConvUNet" if residual else "ResidualEncoderUNet")
    network = get_network_from_plans(name, arguments, IMPORTS, 1, 3, deep_supervision=True)
    outputs = network(torch.zeros(1, 1, 16, 16, 16))
    assert [tuple(output.shape) for output in outputs] == [(1, 3, 16, 16, 16), (1, 3, 8, 8, 8)]


def test_there_and_back_is_the_same_class():
    architecture = Case().plans()["configurations"]["3d_fullres"]["architecture"]
    once = other_architecture(architecture["network_class_name"], architecture["arch_kwargs"])
    assert other_architecture(*once)[0] == architecture["network_class_name"]


def test_an_architecture_of_somebody_else_is_refused():
    with pytest.raises(ValueError, match="is for PlainConvUNet and ResidualEncoderUNet, and the plans have MyNet"):
        other_architecture("my.MyNet", {"n_stages": 3})
