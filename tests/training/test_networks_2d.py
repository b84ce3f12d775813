"""Where 2-D networks and their weights come from, and what is said when they are not to be had."""

import pytest
import torch

from nnunet_ssl.building_blocks.low_rank_adapters import LowRankAdapter
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.networks_2d import LibraryNetwork, axis_of_slices, network_2d, network_of_nnunet, read_weights
from tests.conftest import make_trainer, started

smp = pytest.importorskip("segmentation_models_pytorch")
SIZES = (1, 2, 0, 32)  # channels, classes, axis, slices of a chunk
MN = "nnUNetTrainerMN"


def saved(network, path) -> str:
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.fixture
def segformer():
    torch.manual_seed(1)
    network = smp.create_model("segformer", "mit_b0", encoder_weights=None, classes=5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1)
    return network


def library(file=None, encoder_weights="imagenet", **more) -> LibraryNetwork:
    return LibraryNetwork("segformer", "mit_b0", encoder_weights, file, **more)


@pytest.mark.parametrize("kind", ["whole", "encoder", "folder", "safetensors"])
def test_weights_of_a_file_are_the_encoders(segformer, tmp_path, kind):
    if kind in ("folder", "safetensors"):
        segformer.save_pretrained(tmp_path / "model")
        file = str(tmp_path / "model" / ("model.safetensors" if kind == "safetensors" else ""))
    else:
        file = saved(segformer if kind == "whole" else segformer.encoder, tmp_path / "weights.pth")
    network = library(file).build(*SIZES).network.network
    for name, value in segformer.encoder.state_dict().items():
        assert torch.equal(network.encoder.state_dict()[name], value), name
    decoder = network.decoder.state_dict()["mlp_stage.0.linear.weight"]
    assert torch.equal(decoder, segformer.decoder.state_dict()["mlp_stage.0.linear.weight"]) == (kind != "encoder")
    assert network.segmentation_head[0].out_channels == 2, "the head is of the data set's classes"


def test_an_encoder_without_a_place_for_adapters_is_refused():
    vgg = LibraryNetwork("unet", "vgg11_bn", "none", adapters=(4, 0.1))
    with pytest.raises(ValueError, match="encoder vgg11_bn has no linear layers .* low_rank_adapters=false"):
        vgg.build(*SIZES)


def test_with_adapters_it_starts_as_the_pretrained_encoder(segformer, tmp_path):
    file = saved(segformer, tmp_path / "weights.pth")
    built = library(file, adapters=(4, 0.1)).build(*SIZES).eval()
    encoder = built.network.network.encoder
    assert any(isinstance(module, LowRankAdapter) for module in encoder.modules())
    image = torch.randn(2, 3, 64, 64)
    for found, expected in zip(encoder(image), segformer.eval().encoder(image), strict=True):
        torch.testing.assert_close(found, expected)
    trained = {name for name, p in built.named_parameters() if p.requires_grad}
    assert all(p.requires_grad for p in built.network.network.decoder.parameters())
    assert not any(name.endswith("layer.weight") for name in trained)


def test_batch_normalisation_is_kept_where_it_is_pretrained(tmp_path):
    resnet = smp.create_model("unet", "resnet18", encoder_weights=None)
    file = saved(resnet, tmp_path / "weights.pth")
    for source, kept in ((file, True), (None, False)):
        network = LibraryNetwork("unet", "resnet18", "none", source).build(*SIZES).network.network
        assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.encoder.modules()) == kept
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.decoder.modules())


def test_what_comes_from_a_checkpoint_is_built_alike_and_asks_for_no_weights(segformer, tmp_path):
    file = saved(segformer, tmp_path / "weights.pth")
    first = library(file, adapters=(4, 0.1)).build(*SIZES)
    for source in ("there is none", None):
        later = library(source, adapters=(4, 0.1), is_filled_later=True).build(*SIZES)
        later.load_state_dict(first.state_dict())


def test_run_goes_on_without_the_file_of_weights(segformer, tmp_path, tiny_dataset):
    dataset, file = tiny_dataset(), saved(segformer, tmp_path / "weights.pth")
    settings = {"architecture_2d": "segformer", "encoder": "mit_b0", "adapter_rank": 4, "weights_2d": file}
    trainer = started(dataset, find_trainer(MN), **settings)
    trainer.save_checkpoint(str(tmp_path / "run.pth"))
    (tmp_path / "weights.pth").unlink()
    resumed = make_trainer(dataset, find_trainer(MN), resume=True)
    resumed.load_checkpoint(str(tmp_path / "run.pth"))
    for name, value in trainer.networks["network_2d"].state_dict().items():
        assert torch.equal(resumed.networks["network_2d"].state_dict()[name], value)


def test_a_new_run_does_not_take_itself_for_one_that_goes_on(tiny_dataset):
    with pytest.raises(ValueError, match="weights_2d: nowhere is not a file"):
        make_trainer(tiny_dataset(), find_trainer(MN), weights_2d="nowhere").initialize()


@pytest.mark.parametrize("encoder", ["mit_b0", "resnet18"])
def test_offline_both_other_ways_are_named(monkeypatch, encoder):
    """By the library and the hub themselves, which look for files that were downloaded before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(ConnectionError, match=rf"(?s)imagenet of {encoder} .*weights_2d=PATH.*init_2d=PATH"):
        LibraryNetwork("unet", encoder, "imagenet").build(*SIZES)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("unet3", "mit_b0", "none"), "Wrong architecture type `unet3`"),
        (("unet", "mit_b9", "none"), "Wrong encoder name `mit_b9`"),
        (("unet", "mit_b0", "ade"), "Wrong pretrained weights `ade`"),
    ],
)
def test_what_the_library_has_not_is_named(names, expected):
    with pytest.raises(ValueError, match=f"architecture_2d, encoder, encoder_weights: {expected}"):
        LibraryNetwork(*names).build(*SIZES)


def test_files_that_hold_no_such_weights_are_refused(segformer, tmp_path):
    other = saved(smp.create_model("unet", "resnet18", encoder_weights=None), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth \(weights_2d\) has not the weights of the encoder: of \d+ are"):
        library(other).build(*SIZES)
    segformer.encoder.patch_embed1.proj.weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=r"of another shape, 1, patch_embed1.proj.weight for example"):
        library(saved(segformer, tmp_path / "shape.pth")).build(*SIZES)
    for name, content in (("damaged.pth", b"x"), ("damaged.safetensors", b"x")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
            read_weights(tmp_path / name)
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no weights by name"):
        read_weights(tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"model.safetensors is not a file"):
        read_weights(tmp_path)


def test_several_channels_are_seen():
    built = LibraryNetwork("segformer", "mit_b0", "none").build(2, 3, 1, 8)
    assert built.logits(torch.randn(1, 2, 4, 3, 40)).shape == (1, 3, 4, 3, 40)


def test_two_networks_at_once_are_refused():
    with pytest.raises(ValueError, match="init_2d and weights_2d each say"):
        network_2d("a", library("b"), *SIZES)


def test_checkpoints_of_other_networks_are_refused(tiny_dataset, tmp_path):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    for dim in (2, 3):
        trainer = make_trainer(tiny_dataset(dim=dim), nnUNetTrainer)
        trainer.initialize()
        trainer.save_checkpoint(str(tmp_path / f"{dim}.pth"))
    with pytest.raises(ValueError, match="3.pth is of configuration 3d_fullres, and a 2d one is needed"):
        network_of_nnunet(str(tmp_path / "3.pth"), *SIZES)
    with pytest.raises(ValueError, match="for 1 channels and 4 outputs: train nnU-Net's 2d configuration on the same"):
        network_of_nnunet(str(tmp_path / "2.pth"), 1, 4, 0, 32)
    with pytest.raises(ValueError, match="nowhere is not a file"):
        network_of_nnunet("nowhere", *SIZES)
    assert network_of_nnunet(str(tmp_path / "2.pth"), *SIZES).divisor == (4, 4)


@pytest.mark.parametrize(
    ("spacing", "wanted", "axis"),
    [([3.0, 1.0, 1.0], None, 0), ([1.0, 1.0, 1.0], None, 0), ([1.0, 2.0, 1.5], None, 1), ([3.0, 1.0, 1.0], 3, 2)],
)
def test_axis_is_the_coarsest_or_the_one_that_is_wanted(spacing, wanted, axis):
    assert axis_of_slices(spacing, wanted) == axis


def test_an_axis_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="slice_axis is 1, 2 or 3, counted from the first axis of a patch, got 4"):
        axis_of_slices([1.0] * 3, 4)
