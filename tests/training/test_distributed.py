from contextlib import nullcontext

import pytest
import torch
from torch import nn

from nnunet_ssl.training.distributed import (
    average_gradients,
    device_of_this_process,
    gather_tensor,
    refuse_different_epochs,
    sum_tensor,
    union_over_processes,
)
from nnunet_ssl.training.networks import bare
from nnunet_ssl.training.reproducibility import derive_seed, fix_timed_choices


def test_cpu_stays_cpu():
    assert device_of_this_process(torch.device("cpu")) == torch.device("cpu")


def test_local_rank_decides_the_gpu_of_a_second_node(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")  # global rank 5 of two nodes with four GPUs
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_of_this_process(torch.device("cuda")) == torch.device("cuda", 1)


def test_without_local_rank_the_rank_decides(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_of_this_process(torch.device("cuda")) == torch.device("cuda", 1)


@pytest.mark.parametrize("others", [[7, 7], [7, 5]])
def test_processes_go_on_from_one_epoch(monkeypatch, others):
    def all_gather(everywhere, own):
        everywhere[:] = [own, *others]

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    expected = "process 0 of epoch 7, process 1 of epoch 7, process 2 of epoch 5"
    with nullcontext() if others == [7, 7] else pytest.raises(RuntimeError, match=expected):
        refuse_different_epochs(7)


def test_bare_is_the_module_behind_compilation():
    module = nn.Linear(1, 1)
    assert bare(module) is module
    assert bare(torch.compile(module)) is module


@pytest.mark.parametrize("others", [None, {"b", "z", "case3"}])
def test_names_of_all_processes_are_sorted(monkeypatch, others):
    """Each process has its own order of a set: messages of two would differ."""
    if others:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        gather = lambda gathered, own: gathered.__setitem__(slice(None), [own, others])  # noqa: E731
        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    mine = [f"case{i}" for i in range(20)]
    assert union_over_processes(reversed(mine)) == sorted({*mine, *(others or ())})


def test_one_process_gathers_and_sums_what_it_has_without_gradient():
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    for found in (gather_tensor(tensor), sum_tensor(tensor)):
        assert found.tolist() == [1.0, 2.0]
        assert not found.requires_grad
    sum_tensor(tensor).add_(1.0)
    assert tensor.tolist() == [1.0, 2.0], "the method's own tensor stays as it is"


def test_gradients_are_averaged_and_what_does_not_learn_is_not_sent(monkeypatch):
    """As of two processes: the other has gradients of 3, also of the parameter that has none here."""
    here, missing, frozen = (nn.Parameter(torch.zeros(n)) for n in (2, 3, 100))
    frozen.requires_grad_(False)
    here.grad = torch.ones(2)
    sent = []

    def add_the_others(tensor):
        sent.append(len(tensor))
        tensor += torch.tensor([0.0, 1.0, 1.0, 0.0, *[3.0] * 5])

    monkeypatch.setattr(torch.distributed, "all_reduce", add_the_others)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    flag, present = average_gradients([here, missing, frozen], torch.tensor(1.0))
    assert (float(flag), present.tolist()) == (1.0, [2.0, 1.0, 0.0])
    assert here.grad.tolist() == [2.0, 2.0]
    assert missing.grad.tolist() == [1.5, 1.5, 1.5]
    assert frozen.grad is None
    assert sent == [1 + 3 + 5]


def test_seeds_differ_in_every_part():
    seeds = {
        derive_seed(seed, stream, rank, worker, epoch)
        for seed in (0, 1)
        for stream in range(3)
        for rank in range(2)
        for worker in range(4)
        for epoch in (0, 7)
    }
    assert len(seeds) == 2 * 3 * 2 * 4 * 2
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_timed_choices_are_found_inside_other_transforms():
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    blur = GaussianBlurTransform(benchmark=True)
    fix_timed_choices(ComposeTransforms([RandomTransform(blur)]))
    assert blur.benchmark is False
