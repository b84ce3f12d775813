import pytest
import torch

from nnunet_ssl.training import last_epoch
from nnunet_ssl.training.checkpoints import on_host
from nnunet_ssl.training.last_epoch import LATEST, LastEpoch


@pytest.fixture
def clock(monkeypatch):
    """Return the time, in a list, that can be set."""
    now = [1000.0]
    monkeypatch.setattr(last_epoch.time, "monotonic", lambda: now[0])
    return now


def load(folder):
    return torch.load(folder / LATEST, weights_only=False)


def checkpoint(epoch: int) -> dict:
    return {"current_epoch": epoch, "weights": torch.full((3,), float(epoch))}


def test_written_when_it_is_time_and_otherwise_when_the_run_ends(tmp_path, clock):
    kept = LastEpoch(tmp_path, minutes=10)
    clock[0] += 599
    kept.keep(checkpoint(1))
    assert not (tmp_path / LATEST).exists()
    clock[0] += 1
    kept.keep(checkpoint(2))
    assert load(tmp_path)["current_epoch"] == kept.epoch == 2
    kept.keep(checkpoint(3))
    assert load(tmp_path)["current_epoch"] == 2
    kept.write()
    assert load(tmp_path)["current_epoch"] == kept.epoch == 3


def test_nothing_is_written_over_what_is_on_disk(tmp_path, clock):
    """Any checkpoint counts: nnU-Net's best one is as good to go on from."""
    kept = LastEpoch(tmp_path, minutes=10)
    kept.keep(checkpoint(1))
    clock[0] += 599
    kept.note_written(2)
    kept.write()
    clock[0] += 599
    kept.keep(checkpoint(3))
    assert not (tmp_path / LATEST).exists()
    assert kept.epoch == 3


def test_zero_minutes_write_each_epoch(tmp_path):
    kept = LastEpoch(tmp_path, minutes=0)
    for epoch in (1, 2):
        kept.keep(checkpoint(epoch))
        assert load(tmp_path)["current_epoch"] == epoch


def test_what_is_kept_does_not_change_with_the_run(tmp_path):
    kept, live = LastEpoch(tmp_path, minutes=10), checkpoint(1) | {"curves": {"loss": [1.0]}}
    kept.keep(live)
    live["weights"].zero_()
    live["curves"]["loss"].append(2.0)
    kept.write()
    assert load(tmp_path)["weights"].tolist() == [1.0] * 3
    assert load(tmp_path)["curves"] == {"loss": [1.0]}


def test_copy_on_the_host_shares_what_was_shared_and_holds_the_same():
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    live = {"network": network.state_dict(), "again": network.state_dict(), "half": network[1].weight.detach()[:1]}
    copied = on_host(live)
    assert copied["network"]["1.weight"].data_ptr() == copied["again"]["1.weight"].data_ptr()
    assert copied["network"]["1.weight"].data_ptr() != network[1].weight.data_ptr()
    assert copied["network"]._metadata == live["network"]._metadata
    assert torch.equal(copied["half"], live["half"])
    for name, value in live["network"].items():
        assert torch.equal(copied["network"][name], value)
