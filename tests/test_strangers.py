"""Nothing in a stranger's file is run: a payload is tried through every way in, and must not come to anything."""

import ast
import json
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

import nnunet_ssl
from nnunet_ssl.commands.cli import main
from nnunet_ssl.commands.going_on import how_to_go_on
from nnunet_ssl.demonstration.comparison import Comparison
from nnunet_ssl.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from nnunet_ssl.training.checkpoints import load_checkpoint_file, previous_checkpoint
from nnunet_ssl.training.networks_2d import network_of_nnunet, read_weights
from nnunet_ssl.training.safe_loading import CodeInFileError
from tests.conftest import DATASET, Case, make_trainer
from tests.data.test_unlabeled_preprocessing import write_image
from tests.training.test_model_export import finished_run
from tests.training.test_safe_loading import Payload

ROOT = Path(nnunet_ssl.__file__).parent.parent
TRAINER = nnUNetTrainerCPS
REFUSED = "holds more than weights and plain values (posix.mkdir)"


@pytest.fixture
def dataset(tiny_dataset):
    """Return a data set whose only trained model is a stranger's."""
    dataset = tiny_dataset()
    model = finished_run(dataset, TRAINER)
    raw = dataset.images_un.parent
    write_image(dataset.images_un / "scan0_0000.nii.gz", seed=0)
    write_image(raw / "imagesTr" / "labeled0_0000.nii.gz", seed=1)
    (raw / "dataset.json").write_text(json.dumps(dataset.case.dataset_json()))
    (model / "fold_0" / "validation").mkdir()
    plant(model / "fold_0" / "checkpoint_final.pth", dataset.root / "ran")
    return dataset


def plant(file: Path, folder: Path) -> None:
    """Let a checkpoint make a folder as soon as it is unpickled, whole in all else."""
    content = load_checkpoint_file(file, torch.device("cpu"))
    torch.save(content | {"logging": content["logging"] | {"payload": Payload(folder)}}, file)


def checkpoint_of(dataset, name: str = "final") -> Path:
    model = f"{TRAINER.__name__}__nnUNetPlans__{dataset.case.configuration}"
    return dataset.root / "results" / DATASET / model / "fold_0" / f"checkpoint_{name}.pth"


def test_the_payload_would_run(dataset):
    torch.load(checkpoint_of(dataset), weights_only=False)
    assert (dataset.root / "ran").is_dir()


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "-c", "3d_fullres", "-tr", TRAINER.__name__, "-o", "OUT.zip"],
        ["export", "-c", "3d_fullres", "-tr", TRAINER.__name__, "-o", "OUT.zip", "--ensemble"],
        ["pseudolabel", "-tr", TRAINER.__name__, "-device", "cpu", "-o", "OUT"],
        ["pseudolabel", "-tr", TRAINER.__name__, "-device", "cpu", "-o", "OUT", "--as-dataset", "998"],
        ["preview", "-tr", TRAINER.__name__, "-device", "cpu", "-o", "OUT.png"],
        ["report", "-o", "OUT", "-np", "1"],
    ],
    ids=lambda arguments: " ".join(word for word in arguments if word.islower() and word.isalpha() or "--" in word),
)
def test_verbs_refuse_it(dataset, capsys, monkeypatch, arguments):
    monkeypatch.chdir(dataset.root)
    code = main([*arguments, "-d", "999"])
    said = "".join(capsys.readouterr())
    assert code == 2, said
    if arguments[0] != "report" and "--as-dataset" not in arguments:
        assert REFUSED in said
    assert "Traceback" not in said
    assert not (dataset.root / "ran").exists()
    assert not list(dataset.root.glob("OUT.*"))


def test_a_report_says_why_it_leaves_it_out(dataset):
    from nnunet_ssl.evaluation.runs import find_runs

    results = dataset.root / "results" / DATASET
    found = find_runs(results, dataset.folder, "3d_fullres", "nnUNetPlans")
    assert found.runs == []
    assert REFUSED in found.warnings[0]
    assert not (dataset.root / "ran").exists()


def test_adopt_and_demo_refuse_it(dataset):
    assert not any(str(checkpoint_of(dataset)) in line for line in how_to_go_on(DATASET, dataset.folder))
    (dataset.root / "summary.json").write_text('{"metric_per_case": []}')
    model = checkpoint_of(dataset).parent.parent
    with pytest.raises(CodeInFileError):
        Comparison.read(dataset.images_un.parent, {TRAINER.__name__: model}, {TRAINER.__name__: dataset.root})
    assert not (dataset.root / "ran").exists()


@pytest.mark.parametrize(
    ("name", "is_validation"), [("final", False), ("latest", False), ("best", False), ("final", True), ("best", True)]
)
def test_c_and_val_refuse_it(dataset, name, is_validation):
    if name != "final":
        checkpoint_of(dataset).rename(checkpoint_of(dataset, name))
    trainer = make_trainer(dataset, TRAINER, resume=True)
    with pytest.raises(CodeInFileError, match="holds more than weights"):
        if (name, is_validation) == ("best", True):  # as nnU-Net does with --val_best
            trainer.load_checkpoint(str(checkpoint_of(dataset, name)))
        maybe_load_checkpoint(trainer, not is_validation, is_validation)
    assert not (dataset.root / "ran").exists()


def test_the_fallback_refuses_it(dataset):
    file = checkpoint_of(dataset)
    file.rename(previous_checkpoint(file))
    file.write_bytes(b"damaged")
    with pytest.raises(CodeInFileError, match="previous.pth holds more than weights"):
        make_trainer(dataset, TRAINER, resume=True).load_checkpoint(str(file))
    assert not (dataset.root / "ran").exists()


def test_weights_to_start_from_are_refused(dataset):
    file = str(checkpoint_of(dataset))
    with pytest.raises(CodeInFileError):
        make_trainer(dataset, TRAINER, fold=1, init_checkpoint=file).on_train_start()
    with pytest.raises(CodeInFileError):
        network_of_nnunet(file, 1, 2, 0, 8)
    with pytest.raises(ValueError, match="weights_2d: .* cannot be read as weights"):
        read_weights(file)
    assert not (dataset.root / "ran").exists()


def test_plans_call_nothing_but_modules(dataset, capsys, monkeypatch):
    """nnU-Net calls whatever plans name as a nonlinearity."""
    monkeypatch.chdir(dataset.root)
    plans = dataset.case.plans()
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["arch_kwargs"] |= {"nonlin": "os.system", "nonlin_kwargs": {"command": f"mkdir {dataset.root}/ran"}}
    model = checkpoint_of(dataset).parent.parent
    for file in (model / "plans.json", dataset.folder / "nnUNetPlans.json"):
        file.write_text(json.dumps(plans))
    for verb in ("pseudolabel", "preview", "export"):
        words = ["-d", "999", "-c", "3d_fullres", "-tr", TRAINER.__name__, "-o", "OUT"]
        assert main([verb, *words]) == 2
        assert "plans.json: configuration '3d_fullres' has 'os.system' for 'nonlin'" in capsys.readouterr().err
    monkeypatch.setattr(Case, "plans", lambda _: plans)
    trainer = make_trainer(dataset, TRAINER)
    with pytest.raises(ValueError, match="nnUNetPlans.json: .*'os.system' for 'nonlin', which is no class of torch's"):
        trainer.initialize()
    assert not (dataset.root / "ran").exists()


def calls_in(folder: Path) -> list[tuple[str, ast.Call]]:
    """Return all calls in the modules of a folder, with "module.function"."""
    found = []
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                found.append((f"{file.name}: {ast.unparse(node.func)}", node))
    return found


def test_no_other_way_in():
    """What unpickles, evaluates, or hands text to a shell is called nowhere, and torch only loads weights."""
    calls = [call for name in ("nnunet_ssl", "trainers", "dataset_conversion") for call in calls_in(ROOT / name)]
    assert len(calls) > 1000
    forbidden = ("load_pickle", "exec", "eval", "system", "popen", "getoutput", "loads_pickle", "read_pickle")
    for name, node in calls:
        function = name.partition(": ")[2]
        assert function.rpartition(".")[2] not in forbidden or (".eval" in function and not node.args), name
        assert not function.startswith("pickle."), name
        options = {one.arg: ast.unparse(one.value) for one in node.keywords}
        assert options.get("shell", "False") == "False", name
        assert options.get("allow_pickle", "False") == "False", name
        if function == "torch.load":
            assert options.get("weights_only") == "True", name
