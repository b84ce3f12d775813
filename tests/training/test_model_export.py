import json
import zipfile
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunet_ssl.commands.cli import main
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.catalog import all_trainers
from nnunet_ssl.training.model_export import export_model, exported_names
from tests.conftest import DATASET, assert_equal_weights, make_trainer
from tests.outside_trainer import nnUNetTrainerOutside

TRAINERS = all_trainers()


def finished_run(dataset, trainer_class, fold=0, **settings) -> Path:
    """Leave the files of a training that is over, and return the model's folder."""
    trainer = make_trainer(dataset, trainer_class, fold=fold, **{"seed": 3} | settings)  # one that predicts something
    trainer.initialize()
    trainer.on_train_start()
    with torch.no_grad():  # so that the networks of a method differ
        for weight in trainer.networks[trainer.inference_network()].parameters():
            weight.mul_(1.5)
    trainer.inference_allowed_mirroring_axes = (0, 2)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    trainer.on_train_end()
    return Path(trainer.output_folder_base)


def export(out: Path, trainer_class, *more: str) -> int:
    return main(["export", "-d", "999", "-c", "3d_fullres", "-tr", trainer_class.__name__, "-o", str(out), *more])


def own_architecture(monkeypatch, change) -> type:
    """Let a trainer that nnU-Net finds build a network which is changed in some way."""
    trainer = find_trainer("nnUNetTrainerMeanTeacher")
    build = trainer.build_network_architecture

    def built(plans_manager, configuration_manager, inputs, outputs, enable_deep_supervision=True):
        return change(build(plans_manager, configuration_manager, inputs, outputs, enable_deep_supervision))

    monkeypatch.setattr(trainer, "build_network_architecture", staticmethod(built))
    return trainer


def with_gelu(network):
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(module, name, nn.GELU())
    return network


def test_a_network_of_ones_own_is_not_exported_as_another(tiny_dataset, tmp_path, monkeypatch, capsys):
    """Its weights would fit that of the plans, which says something else."""
    trainer = own_architecture(monkeypatch, with_gelu)
    finished_run(tiny_dataset(), trainer)
    assert export(tmp_path / "model.zip", trainer) == 2
    assert "builds a network of its own, and plain nnU-Net that of the plans: hand on" in capsys.readouterr().err
    assert not (tmp_path / "model.zip").exists()


def test_weights_of_no_network_of_the_plans_are_not_exported(tiny_dataset, tmp_path, capsys):
    """Of a trainer that is not found any more: nnU-Net's with batch normalisation, say."""
    trainer = find_trainer("nnUNetTrainerMeanTeacher")
    file = finished_run(tiny_dataset(), trainer) / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file)
    checkpoint["network_weights"]["encoder.norm.num_batches_tracked"] = torch.zeros(())
    torch.save(checkpoint, file)
    assert export(tmp_path / "model.zip", trainer) == 2
    assert "is neither a PlainConvUNet nor a ResidualEncoderUNet of these plans" in capsys.readouterr().err


def test_a_builder_of_ones_own_that_builds_the_same_is_exported(tiny_dataset, tmp_path, monkeypatch):
    trainer = own_architecture(monkeypatch, lambda network: network)
    finished_run(tiny_dataset(), trainer)
    assert export(tmp_path / "model.zip", trainer) == 0


def network_of(folder: Path, folds=(0,)) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds)
    return predictor


@pytest.mark.parametrize("trainer_class", TRAINERS, ids=lambda trainer: trainer.__name__)
def test_exported_model_is_the_network_that_predicts(tiny_dataset, trainer_class, tmp_path, capsys):
    dataset = tiny_dataset(dim=max(trainer_class.DIMENSIONS))
    configuration = dataset.case.configuration
    model = finished_run(dataset, trainer_class)
    assert export(tmp_path / "model.zip", trainer_class, "-c", configuration) == 0
    name = trainer_class.__name__.removeprefix("nnUNetTrainer")
    assert f"-tr nnUNetTrainer -p nnUNetPlans_{name} -f 0" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "model.zip") as opened:
        opened.extractall(tmp_path / "results")
    exported = tmp_path / "results" / DATASET / f"nnUNetTrainer__nnUNetPlans_{name}__{configuration}"
    ours, plain = network_of(model), network_of(exported)
    assert plain.trainer_name == "nnUNetTrainer"
    assert plain.allowed_mirroring_axes == ours.allowed_mirroring_axes == (0, 2)
    image = torch.randn(1, 1, *[16] * dataset.case.dim)
    ours.network.load_state_dict(ours.list_of_parameters[0])
    with torch.no_grad():
        assert torch.equal(ours.network.eval()(image), plain.network.eval()(image))


def test_nothing_private_is_in_it(tiny_dataset, tmp_path):
    dataset = tiny_dataset()
    model = finished_run(dataset, TRAINERS[0])
    content = json.loads((model / "dataset.json").read_text())
    private = {"training": [{"image": "labeled0"}], "converted_by": "Dr. Somebody", "licence": "private"}
    (model / "dataset.json").write_text(json.dumps(content | private))
    assert export(tmp_path / "model.zip", TRAINERS[0]) == 0
    with zipfile.ZipFile(tmp_path / "model.zip") as opened:
        names = sorted(Path(name).name for name in opened.namelist())
        everything = b"".join(opened.read(name) for name in opened.namelist())
        with opened.open(next(name for name in opened.namelist() if name.endswith(".pth"))) as file:
            checkpoint = torch.load(file, weights_only=True)  # tensors and plain values alone
    assert names == ["checkpoint_final.pth", "dataset.json", "plans.json"]
    assert set(checkpoint) == {"network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"}
    for word in (b"labeled0", b"Somebody", str(dataset.root).encode(), b"optimizer", b"momentum"):
        assert word not in everything, word


def test_several_folds(tiny_dataset, tmp_path):
    dataset = tiny_dataset()
    for fold in (0, 1):
        finished_run(dataset, TRAINERS[0], fold)
    assert export(tmp_path / "model.zip", TRAINERS[0], "-f", "0", "1") == 0
    with zipfile.ZipFile(tmp_path / "model.zip") as opened:
        assert sum(name.endswith("checkpoint_final.pth") for name in opened.namelist()) == 2


def test_folds_that_mirror_differently_are_exported_with_the_axes_of_all(tiny_dataset, tmp_path, capsys):
    """nnU-Net predicts every fold mirrored as the first one, whichever that is."""
    dataset = tiny_dataset()
    for fold, axes in ((0, (0, 2)), (1, (0, 1))):
        model = finished_run(dataset, TRAINERS[0], fold)
        file = model / f"fold_{fold}" / "checkpoint_final.pth"
        torch.save(torch.load(file, weights_only=False) | {"inference_allowed_mirroring_axes": axes}, file)
    assert export(tmp_path / "model.zip", TRAINERS[0], "-f", "0", "1") == 0
    said = capsys.readouterr().out
    assert "the folds mirror along different axes: fold 0 along 0, 2; fold 1 along 0, 1. The exported model" in said
    assert "predicts with those of all: 0\n" in said
    with zipfile.ZipFile(tmp_path / "model.zip") as opened:
        opened.extractall(tmp_path / "results")
    (exported,) = (tmp_path / "results" / DATASET).iterdir()
    assert {network_of(exported, folds).allowed_mirroring_axes for folds in ((0, 1), (1, 0))} == {(0,)}


def test_ensemble_holds_both_networks_as_folds(tiny_dataset, tmp_path, capsys):
    dataset = tiny_dataset()
    cps = find_trainer("nnUNetTrainerCPS")
    model = finished_run(dataset, cps)
    assert export(tmp_path / "model.zip", cps, "--ensemble") == 0
    assert "-p nnUNetPlans_CPS -f 0 1" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "model.zip") as opened:
        opened.extractall(tmp_path / "results")
    plain = network_of(tmp_path / "results" / DATASET / "nnUNetTrainer__nnUNetPlans_CPS__3d_fullres", (0, 1))
    saved = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    parts = saved["nnunet_ssl"]["networks"]
    for weights, part in zip(plain.list_of_parameters, (parts["first"], parts["second"]), strict=True):
        assert all(torch.equal(weights[name], value) for name, value in part.items())
    assert any(not torch.equal(parts["first"][name], value) for name, value in parts["second"].items())


def test_ensemble_needs_two_networks_of_one_architecture(tiny_dataset, tmp_path, capsys):
    dataset = tiny_dataset()
    mean_teacher, cps = find_trainer("nnUNetTrainerMeanTeacher"), find_trainer("nnUNetTrainerCPS")
    finished_run(dataset, mean_teacher)
    assert export(tmp_path / "model.zip", mean_teacher, "--ensemble") == 2
    assert "nnUNetTrainerMeanTeacher trains one network" in capsys.readouterr().err
    finished_run(dataset, cps, second_architecture="other")
    finished_run(dataset, cps, fold=1)
    assert export(tmp_path / "model.zip", cps, "--ensemble", "-f", "0", "1") == 2
    expected = "fold_1/checkpoint_final.pth has another second_architecture than the folds before it: name one fold"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "model.zip").exists()
    assert export(tmp_path / "model.zip", cps) == 0


def unpacked(zipped: Path, folder: Path) -> list[str]:
    """Unpack an export, and return the names of its models."""
    with zipfile.ZipFile(zipped) as opened:
        opened.extractall(folder)
    return sorted(model.name for model in (folder / DATASET).iterdir())


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ["C3S3", "CrossTeaching", "MEDL"])
def test_ensemble_of_two_architectures_is_a_model_each(tiny_dataset, tmp_path, capsys, name, residual):
    dataset = tiny_dataset(residual=residual, num_classes=4)
    trainer = find_trainer(f"nnUNetTrainer{name}")
    model = finished_run(dataset, trainer)
    assert export(tmp_path / "model.zip", trainer, "--ensemble") == 0
    plans = [f"nnUNetPlans_{name}", f"nnUNetPlans_{name}_second"]
    lines = capsys.readouterr().out.splitlines()
    predictions = [line for line in lines if line.startswith("nnUNetv2_predict")]
    for line, one, out in zip(predictions, plans, ("OUT_1", "OUT_2"), strict=True):
        assert f"-tr nnUNetTrainer -p {one} -f 0 -chk checkpoint_final.pth -i IMAGES -o {out} --save_prob" in line
    assert lines[-1] == "nnUNetv2_ensemble -i OUT_1 OUT_2 -o OUT"
    assert "The networks differ in architecture. Predict with each, then average what they predict:" in lines

    folders = [f"nnUNetTrainer__{one}__3d_fullres" for one in plans]
    assert unpacked(tmp_path / "model.zip", tmp_path / "results") == folders
    saved = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["nnunet_ssl"]["networks"]
    architectures = ["PlainConvUNet", "ResidualEncoderUNet"]
    for folder, one, network, kind in zip(
        folders, plans, ("first", "second"), architectures[::-1] if residual else architectures, strict=True
    ):
        plain = network_of(tmp_path / "results" / DATASET / folder)
        assert type(plain.network).__name__ == kind
        assert plain.trainer_name == "nnUNetTrainer"
        assert plain.plans_manager.plans_name == one
        plain.network.load_state_dict(plain.list_of_parameters[0])
        assert_equal_weights(dict(plain.network.state_dict()), dict(saved[network]))


def test_folds_of_an_ensemble_of_two_architectures_keep_their_numbers(tiny_dataset, tmp_path, capsys):
    dataset, trainer = tiny_dataset(), find_trainer("nnUNetTrainerCrossTeaching")
    model, _ = (finished_run(dataset, trainer, fold, seed=fold) for fold in (0, 1))
    assert export(tmp_path / "model.zip", trainer, "--ensemble", "-f", "1", "0") == 0
    assert capsys.readouterr().out.count(" -f 1 0 ") == 2
    folders = unpacked(tmp_path / "model.zip", tmp_path / "results")
    assert len(folders) == 2
    for folder, network in zip(folders, ("first", "second"), strict=True):
        plain = network_of(tmp_path / "results" / DATASET / folder, (0, 1))
        for fold, weights in enumerate(plain.list_of_parameters):
            saved = torch.load(model / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
            assert_equal_weights(dict(weights), dict(saved["nnunet_ssl"]["networks"][network]))


def test_teachers_of_two_architectures_are_a_model_each(tiny_dataset, tmp_path, monkeypatch):
    dataset = tiny_dataset(dim=2)
    trainer = make_trainer(dataset, nnUNetTrainerOutside)
    trainer.initialize()
    trainer.on_train_start()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    names = exported_names("nnUNetTrainerOutside", "nnUNetPlans")
    given = (Path(trainer.output_folder_base), ["0"], "checkpoint_final.pth", DATASET, names)
    models = export_model(*given, tmp_path / "model.zip", ensemble=True)
    assert [one.plans for one in models] == ["nnUNetPlans_Outside", "nnUNetPlans_Outside_right_teacher"]
    folders = unpacked(tmp_path / "model.zip", tmp_path / "results")
    for folder, teacher in zip(folders, ("left_teacher", "right_teacher"), strict=True):
        weights = network_of(tmp_path / "results" / DATASET / folder).list_of_parameters[0]
        assert_equal_weights(dict(weights), dict(trainer.networks[teacher].state_dict()))


def test_an_architecture_that_plans_cannot_have_is_refused(tiny_dataset, tmp_path, capsys):
    dataset, trainer = tiny_dataset(), find_trainer("nnUNetTrainerCrossTeaching")
    file = finished_run(dataset, trainer) / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    checkpoint["nnunet_ssl"]["networks"]["second"]["encoder.more"] = torch.zeros(1)
    torch.save(checkpoint, file)
    assert export(tmp_path / "model.zip", trainer, "--ensemble") == 2
    assert "network second of" in (error := capsys.readouterr().err)
    assert "PlainConvUNet nor a" in error
    assert not list(tmp_path.glob("model.zip*"))


def test_faults_are_named_and_no_zip_is_left(tiny_dataset, tmp_path, capsys):
    dataset = tiny_dataset()
    out = tmp_path / "model.zip"
    assert export(out, TRAINERS[0]) == 2
    assert "there is no trained model" in capsys.readouterr().err
    model = finished_run(dataset, TRAINERS[0])
    assert export(out, TRAINERS[0], "-f", "3") == 2
    assert "has no fold 3, it has: 0" in capsys.readouterr().err
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"damaged")
    assert export(out, TRAINERS[0]) == 2
    assert "checkpoint_final.pth" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if "model" in path.name] == []
    out.write_text("mine")
    assert export(out, TRAINERS[0]) == 2
    assert "model.zip exists: replace it with --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
