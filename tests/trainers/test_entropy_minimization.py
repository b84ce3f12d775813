from nnunet_ssl.building_blocks.entropy import balanced_entropy


def test_many_steps_of_entropy_alone_make_the_network_sure(start):
    trainer, labeled, unlabeled = start("EntropyMinimization", entropy_weight=1.0, rampup_duration=0.0)
    before = balanced_entropy(trainer.label_space, trainer.student_probabilities(unlabeled.weak))
    for _ in range(5):
        trainer.optimizer.zero_grad()
        list(trainer.training_losses(labeled, unlabeled))[1]["entropy"].backward()
        trainer.optimizer.step()
    after = balanced_entropy(trainer.label_space, trainer.student_probabilities(unlabeled.weak))
    assert after < before
