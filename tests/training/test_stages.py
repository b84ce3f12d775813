import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_ssl.training.stages import MAIN, PRETRAINING, WARMUP, Stages


def test_stages_follow_each_other():
    stages = Stages(pretrain_fraction=0.25, warmup_fraction=0.25)
    progress = [0.0, 0.249, 0.25, 0.499, 0.5, 0.99]
    assert [stages.at(value) for value in progress] == [PRETRAINING] * 2 + [WARMUP] * 2 + [MAIN] * 2
    assert [stages.progress_of_main(value) for value in (0.0, 0.5, 0.75)] == [0.0, 0.0, 0.5]


def test_without_fractions_all_is_the_main_stage():
    assert Stages().at(0.0) == MAIN
    assert Stages().progress_of_main(0.3) == 0.3
    assert not Stages().is_labeled_only(0.0, 0.1)


def test_only_what_lies_wholly_in_the_warmup_is_labeled_only():
    stages = Stages(pretrain_fraction=0.2, warmup_fraction=0.3)
    spans = [(0.0, 0.1), (0.1, 0.3), (0.2, 0.3), (0.4, 0.5), (0.4, 0.6), (0.5, 0.6)]
    assert [stages.is_labeled_only(*span) for span in spans] == [False, False, True, True, False, False]


def test_a_run_of_warmup_alone_has_no_progress_of_main():
    assert Stages(warmup_fraction=1.0).progress_of_main(0.9) == 0.0


def test_more_than_the_run_is_refused():
    with pytest.raises(ValueError, match="pretrain_fraction=0.7 and warmup_fraction=0.4 are more than the whole run"):
        Stages(0.7, 0.4)


@pytest.mark.parametrize(
    ("stages", "rounds", "epochs", "expected"),
    [
        (Stages(0.0, 0.4), 3, 1000, [400, 600, 800]),
        (Stages(0.0, 0.4), 3, 8, [3, 4, 6]),  # with the epoch that the beginning lies in
        (Stages(0.1, 0.2), 7, 100, [30, 40, 50, 60, 70, 80, 90]),  # 0.3 + 0.1 i, whatever is lost in binary numbers
        (Stages(), 2, 10, [0, 5]),
        (Stages(0.0, 0.5), 4, 4, [2, 3]),  # two in each
        (Stages(0.0, 0.4), 0, 10, []),
        (Stages(0.0, 1.0), 3, 10, []),
    ],
)
def test_rounds_divide_the_main_stage(stages, rounds, epochs, expected):
    assert stages.epochs_of_rounds(rounds, epochs) == expected


# ---- the learning rate ----


def learning_rates(stages: Stages, num_epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule, found = stages.schedule(PolyLRScheduler(optimizer, 0.01, num_epochs), num_epochs), []
    for epoch in range(num_epochs):
        schedule.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_learning_rate_is_nnunets_where_there_is_no_pretraining():
    assert learning_rates(Stages(warmup_fraction=0.4), 10) == [0.01 * (1 - i / 10) ** 0.9 for i in range(10)]


def test_learning_rate_is_that_of_two_runs_where_there_is_a_pretraining():
    expected = learning_rates(Stages(), 3) + learning_rates(Stages(), 7)
    assert learning_rates(Stages(pretrain_fraction=0.3), 10) == pytest.approx(expected)


def test_learning_rate_of_an_epoch_in_both_is_the_pretrainings():
    expected = [0.01 * (1 - share) ** 0.9 for share in (0.0, 0.4, 0.8, 0.2, 0.6)]
    assert learning_rates(Stages(pretrain_fraction=0.5), 5) == pytest.approx(expected)


def test_learning_rate_of_a_run_of_pretraining_alone_is_nnunets():
    assert learning_rates(Stages(pretrain_fraction=1.0), 4) == pytest.approx(learning_rates(Stages(), 4))


@pytest.mark.parametrize(
    ("fraction", "epochs", "expected"), [(0.0, 9, []), (0.3, 10, [3]), (0.5, 5, [3]), (1.0, 4, [])]
)
def test_one_epoch_is_the_first_after_the_pretraining(fraction, epochs, expected):
    stages = Stages(pretrain_fraction=fraction)
    assert [epoch for epoch in range(epochs) if stages.is_first_after_pretraining(epoch, epochs)] == expected
