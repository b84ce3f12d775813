import os

import matplotlib.image
import pytest
import torch

from nnunet_ssl.building_blocks.label_space import SigmoidRegions, SoftmaxLabels
from nnunet_ssl.commands.cli import main
from nnunet_ssl.data.loaders import batches_on_device
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunet_ssl.training.preview import label_map
from tests.conftest import assert_equal_weights, make_trainer, parameters_of, started
from tests.training.test_model_export import finished_run


def test_map_of_labels_and_of_regions():
    probs = torch.tensor([[0.8, 0.1, 0.2], [0.1, 0.7, 0.2], [0.1, 0.2, 0.6]])[None]
    assert label_map(SoftmaxLabels(3), probs).tolist() == [[0, 1, 2]]
    whole, core = torch.tensor([[0.9, 0.9, 0.1], [0.8, 0.2, 0.3]])
    assert label_map(SigmoidRegions(2), torch.stack([whole, core])[None]).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("cell", [{"dim": 2}, {"dim": 3}, {"regions": True, "num_classes": 4}], ids=str)
def test_training_with_previews_is_the_same_training(tiny_dataset, cell):
    weights = []
    for previews in (False, True):
        dataset = tiny_dataset(**cell)
        trainer = make_trainer(dataset, nnUNetTrainerMeanTeacher, seed=1, previews=previews, num_epochs=3)
        trainer.run_training()
        weights.append(parameters_of(trainer.network))
        files = {path.name for path in (dataset.root / "results").rglob("previews/*")}
        assert files == ({"epoch_0000.png", "epoch_0002.png"} if previews else set())
    assert_equal_weights(*weights)


def test_in_the_warmup_there_is_nothing_to_preview(tiny_dataset, tmp_path, capsys):
    """Stopped after the first of 6 epochs, of which the first two are labeled-only."""
    dataset = tiny_dataset()
    trainer = make_trainer(dataset, find_trainer("nnUNetTrainerFixMatch"), num_epochs=6, save_every=1, previews=True)
    trainer.on_epoch_end = lambda: (type(trainer).on_epoch_end(trainer), stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    assert not list((dataset.root / "results").rglob("previews/*"))
    arguments = ["-d", "999", "-tr", "nnUNetTrainerFixMatch", "-device", "cpu", "-o", str(tmp_path / "preview.png")]
    assert main(["preview", *arguments, "-chk", "checkpoint_latest.pth"]) == 2
    assert "labeled-only warm-up" in capsys.readouterr().err


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["nnUNetTrainerMeanTeacher", "nnUNetTrainerFixMatch"])  # without threshold, and with
def test_preview_of_a_checkpoint(tiny_dataset, tmp_path, capsys, name):
    dataset = tiny_dataset()
    finished_run(dataset, find_trainer(name))
    out = tmp_path / "pictures" / "preview.png"
    arguments = ["-d", "999", "-tr", name, "-device", "cpu", "-o", str(out)]
    assert main(["preview", *arguments]) == 0
    pixels = matplotlib.image.imread(out)
    assert pixels.shape[1] > pixels.shape[0] > 300  # two patches, four pictures each
    assert pixels[..., :3].std() > 0.05
    assert f"{out}: unlabeled" in capsys.readouterr().out
    assert main(["preview", *arguments, "-f", "1"]) == 2
    assert "has no fold 1, it has: 0" in capsys.readouterr().err


def test_the_legend_has_the_names_in_the_order_of_the_labels(tiny_dataset, tmp_path, monkeypatch):
    """dataset.json may list them in another one."""
    trainer = started(tiny_dataset(num_classes=3), nnUNetTrainerMeanTeacher)
    trainer.observer.channel_names = {2: "second", 1: "first"}
    found = []
    monkeypatch.setattr("nnunet_ssl.training.preview.legend_entries", lambda names: found.append(names) or [])
    trainer.draw_preview(batches_on_device(next(trainer.dataloader_train), trainer.device)[1], tmp_path / "p.png")
    assert found == [{1: "first", 2: "second"}]


def test_preview_leaves_the_runs_folder_as_it_is(tiny_dataset, tmp_path, monkeypatch):
    """nnU-Net's constructor would begin a log, and delete what Weights & Biases has kept."""
    dataset = tiny_dataset()
    finished_run(dataset, find_trainer("nnUNetTrainerMeanTeacher"))
    folder = next((dataset.root / "results").rglob("fold_0"))
    (folder / "wandb" / "run-1").mkdir(parents=True)
    (folder / "wandb" / "run-1" / "kept").write_text("curves of a week")
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    results = os.environ["nnUNet_results"]
    before = {path: path.stat().st_mtime_ns for path in (dataset.root / "results").rglob("*")}
    arguments = ["-d", "999", "-tr", "nnUNetTrainerMeanTeacher", "-device", "cpu", "-o", str(tmp_path / "preview.png")]
    assert main(["preview", *arguments]) == 0
    assert {path: path.stat().st_mtime_ns for path in (dataset.root / "results").rglob("*")} == before
    assert (os.environ["nnUNet_results"], os.environ["nnUNet_wandb_enabled"]) == (results, "1")
