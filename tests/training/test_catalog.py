import pytest

from nnunet_ssl.commands.cli import main
from nnunet_ssl.training.catalog import COMMON_OPTIONS, all_trainers, describe
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer


@pytest.mark.parametrize("trainer", all_trainers(), ids=lambda trainer: trainer.__name__)
def test_every_trainer_describes_itself(trainer):
    entry = describe(trainer)
    assert entry.sentence.endswith(".")
    assert len(entry.sentence) < 150
    assert entry.paper.startswith("https://")
    assert entry.cost > 1
    assert {"seed", "init_checkpoint"} <= set(COMMON_OPTIONS)
    for name in set(entry.options) & set(COMMON_OPTIONS):
        assert entry.options[name] != getattr(SemiSupervisedTrainer, name), "it is there because it differs"
    assert "num_epochs" not in entry.options


def test_mean_teacher_by_hand(capsys):
    assert main(["trainers"]) == 0
    out = capsys.readouterr().out
    assert "nnUNetTrainerMeanTeacher\n  Mean Teacher: on unlabeled images the student is pulled towards" in out
    assert "paper:   https://arxiv.org/abs/1703.01780" in out
    assert "cost:    2.33 of nnU-Net's step" in out
    assert "consistency_weight=1 " in out
    assert "options of all:\n  mirroring seed " in out
