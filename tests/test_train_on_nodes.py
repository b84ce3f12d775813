"""`torchrun ... -m nnunet_ssl.train`: one training in processes that PyTorch's launcher starts, on one node or two."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from nnunet_ssl import train
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.cascade_trainer import UNLABELED
from tests.conftest import SECOND_STAGE, started, tensors_of
from tests.gloo_harness import free_port
from tests.test_stopped_trainings import parent_of

TRAINER = "nnUNetTrainerMeanTeacher"
WORDS = ["999", "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu"]
LENGTH = "num_epochs=3 num_iterations_per_epoch=8 num_val_iterations_per_epoch=1 checkpoint_minutes=0 seed=1"
SECONDS = 300.0  # for whatever takes a few, on a busy machine too


@pytest.fixture
def make_dataset(tiny_dataset, monkeypatch):
    """Return a function that writes a data set, and sets the options of its training."""

    def make(**kind):
        made = tiny_dataset(**kind)
        monkeypatch.setenv("nnUNet_ssl_options", LENGTH)
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        return made

    return make


@pytest.fixture
def dataset(make_dataset):
    return make_dataset()


@pytest.fixture
def launched(monkeypatch):
    """Make this process the only one that a launcher has started."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_PORT", str(free_port()))


def run_here(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nnunet_ssl.train", *words])
    return train.main()


class Launch:
    """A launcher in a process of its own, and what it and its processes say."""

    def __init__(self, root: Path, *launcher: str, configuration: str = "3d_fullres") -> None:
        self.log = root / f"log{len(list(root.glob('log*')))}.txt"
        words = [configuration if word == "3d_fullres" else word for word in WORDS]
        command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "nnunet_ssl.train", *words, "--c"]
        with self.log.open("w") as opened:
            self.process = subprocess.Popen(command, stdout=opened, stderr=opened, cwd=root)

    def wait_for(self, text: str) -> None:
        wait_for_one_of([self], text)

    def kill_last(self) -> None:
        """Kill the last of its processes."""
        pids = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent_of(pid) == self.process.pid]
        variables = {pid: dict(one.split(b"=", 1) for one in environment_of(pid)) for pid in pids}
        ranks = {pid: int(of_it[b"LOCAL_RANK"]) for pid, of_it in variables.items() if b"LOCAL_RANK" in of_it}
        os.kill(max(ranks, key=ranks.get), signal.SIGKILL)

    def end(self) -> str:
        code = self.process.wait(SECONDS)
        assert code == 0, self.log.read_text()[-3000:]
        return self.log.read_text()


def environment_of(pid: int) -> list[bytes]:
    return [one for one in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if b"=" in one]


def wait_for_one_of(launches: list[Launch], text: str) -> Launch:
    """Return the launch that says a text, once it does."""
    deadline = time.monotonic() + SECONDS
    while True:
        for launch in launches:
            said = launch.log.read_text()
            if text in said:
                return launch
            assert launch.process.poll() is None, said[-3000:]
            assert time.monotonic() < deadline, said[-3000:]
        time.sleep(0.05)


def weights_of(root: Path) -> dict[str, torch.Tensor]:
    (file,) = root.glob(f"results/*/{TRAINER}*fullres/fold_0/checkpoint_final.pth")
    ours = torch.load(file, weights_only=False)["nnunet_ssl"]
    return tensors_of({kind: ours[kind] for kind in ("networks", "teachers")})


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_group_of_one_process_trains_like_nnunets_command(dataset, launched, monkeypatch):
    assert run_here(monkeypatch, *WORDS) == 0
    assert not dist.is_initialized()
    (folder,) = dataset.root.glob(f"results/*/{TRAINER}*/fold_0")
    assert (folder / "checkpoint_final.pth").exists()
    assert (folder / "validation" / "summary.json").exists()


def test_first_weights_are_read_onto_the_cpu_whatever_the_rank(dataset, launched, monkeypatch):
    file = dataset.root / "weights.pth"
    trainer = started(dataset, find_trainer(TRAINER), seed=5)
    trainer.save_checkpoint(str(file))
    read = []
    monkeypatch.setattr(dist, "get_rank", lambda *_: 3)  # of a second node, which has no fourth GPU
    with train.replaced(train.load_pretrained_weights, "torch", train.ONTO_CPU):
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        train.load_pretrained_weights.load_pretrained_weights(trainer.network, str(file))
        read.append(next(trainer.network.parameters()).device)
    assert read == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (("-num_gpus", "2"), {}, "-num_gpus is of nnU-Net's own launcher"),
        (("-tr", "nnUNetTrainer"), {}, "nnUNetTrainer is not of nnunet_ssl"),
        (("-device", "mps"), {}, "-device is cuda or cpu"),
        ((), {"TORCHELASTIC_MAX_RESTARTS": "2"}, "with --max-restarts give --c too"),
    ],
)
def test_wrong_words_are_one_sentence(dataset, launched, monkeypatch, capsys, words, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run_here(monkeypatch, *WORDS, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not dist.is_initialized()


def test_without_a_launcher_it_says_how_to_start(monkeypatch, capsys):
    for name in train.LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    assert run_here(monkeypatch, *WORDS) == 2
    assert "start it with torchrun" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_one_that_is_killed_ends_in_the_weights_of_an_undisturbed_run(make_dataset):
    ends = []
    for killed in (False, True):
        root = make_dataset().root
        launch = Launch(root, "--nproc-per-node", "2", "--max-restarts", "1", "--master-port", str(free_port()))
        if killed:
            launch.wait_for("Epoch 1")
            launch.kill_last()
        said = launch.end()
        assert said.count(": Epoch 0\n") == 1, "it went on"  # the line with a time is the log's
        assert ("exitcode: -9" in said) == killed
        ends.append(weights_of(root))
    assert_equal_weights(*ends)


@pytest.fixture
def nodes_meet(monkeypatch):
    """Return the words by which launchers of two nodes find each other as in docs/clusters.md."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    address = ["--rdzv-backend", "c10d", "--rdzv-id", "run", "--rdzv-endpoint", f"localhost:{free_port()}"]
    return ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", *address]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_two_nodes_end_in_the_weights_of_one_whatever_is_killed(make_dataset, nodes_meet):
    of_one = make_dataset().root
    Launch(of_one, "--nproc-per-node", "2", "--master-port", str(free_port())).end()
    for killed in (False, True):
        of_two = make_dataset().root
        nodes = [Launch(of_two, *nodes_meet) for _ in range(2)]
        if killed:
            first = wait_for_one_of(nodes, "Epoch 1")
            nodes[1 - nodes.index(first)].kill_last()  # the one whose process saves nothing
        said = "".join(node.end() for node in nodes)
        assert said.count(": Epoch 0\n") == 1, "it went on"  # the line with a time is the log's
        assert ("exitcode: -9" in said) == killed
        assert_equal_weights(weights_of(of_one), weights_of(of_two))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_second_stage_of_a_cascade_that_is_killed_segments_no_case_twice(make_dataset):
    ends = []
    for killed in (False, True):
        dataset = make_dataset(cascade=True)
        segmented = dataset.write_first_stage(TRAINER) / UNLABELED / SECOND_STAGE
        words = ["--nproc-per-node", "2", "--max-restarts", "1", "--master-port", str(free_port())]
        launch = Launch(dataset.root, *words, configuration=SECOND_STAGE)
        launch.wait_for("Epoch 1")
        made = {file: file.stat().st_mtime_ns for file in segmented.rglob("*.b2nd")}
        assert sorted(file.stem for file in made) == ["unlabeled0", "unlabeled1", "unlabeled2"]
        if killed:
            launch.kill_last()
        said = launch.end()
        assert {file: file.stat().st_mtime_ns for file in segmented.rglob("*.b2nd")} == made
        assert "of 3 in" in said
        ends.append(weights_of(dataset.root))
    assert_equal_weights(*ends)
