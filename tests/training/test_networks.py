"""Networks, parts and teachers of a run, on a base that trains them."""

import pydoc

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainer_warmup import nnUNetTrainer_warmup
from torch import nn

from nnunet_ssl.building_blocks.features import NetworkWithoutFeatures
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.dual_network_trainer import DualNetworkTrainer
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from tests.conftest import assert_equal_weights, make_trainer, parameters_of, started, state_of
from tests.outside_trainer import nnUNetTrainerOutside


class WithHead(SemiSupervisedTrainer):
    """Trains a head on the features, and has another one that nothing uses."""

    def build_parts(self):
        return {"head": nn.Conv2d(4, 1, 1), "idle": nn.Conv2d(4, 1, 1)}

    def training_losses(self, labeled, unlabeled):
        found = self.forward_pass(labeled.image)
        yield {
            "supervised": self.supervised_loss(labeled, outputs=found.outputs),
            "head": self.parts["head"](found.features).square().mean(),
        }


def test_parts_are_trained_with_the_first_networks_optimiser(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), WithHead)
    head = trainer.parts["head"]
    groups = trainer.optimizer.param_groups
    assert [id(parameter) for group in groups[1:] for parameter in group["params"]] == [
        id(parameter) for name in ("head", "idle") for parameter in trainer.parts[name].parameters()
    ]
    before = parameters_of(head)
    trainer.train_step(next(trainer.dataloader_train))
    assert all(not torch.equal(value, before[name]) for name, value in parameters_of(head).items())
    trainer.current_epoch = 1
    trainer.on_train_epoch_start()
    assert len({group["lr"] for group in groups}) == 1
    assert groups[0]["lr"] < trainer.initial_lr


class WithTwoHeads(DualNetworkTrainer):
    """Trains a head with each of two networks, and one that nobody claims."""

    def build_parts(self):
        return {name: nn.Conv2d(4, 1, 1) for name in ("head", "second_head", "idle")}

    def networks_of_parts(self):
        return {"head": "first", "second_head": "second"}

    def training_losses(self, labeled, unlabeled):
        for network, head in (("first", "head"), ("second", "second_head")):
            found = self.forward_pass(labeled.image, network)
            loss = self.supervised_loss(labeled, outputs=found.outputs)
            yield {network: loss + 1e3 * self.parts[head](found.features).square().mean()}


def test_parts_can_be_trained_with_another_network_than_the_first(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), WithTwoHeads, num_epochs=4)
    first, second = trainer.networks.trained.values()
    parts = trainer.parts
    assert first.modules == (trainer.networks[None], parts["head"], parts["idle"])
    assert second.modules == (trainer.networks["second"], parts["second_head"])
    for one in (first, second):
        in_groups = [id(p) for group in one.optimizer.param_groups for p in group["params"]]
        assert in_groups == [id(p) for p in one.parameters()]
    before = {name: parameters_of(part) for name, part in parts.items()}
    trainer.train_step(next(trainer.dataloader_train))
    for name, part in parts.items():
        moved = [not torch.equal(value, before[name][key]) for key, value in parameters_of(part).items()]
        assert all(moved) != (name == "idle")
    for one in (first, second):  # a network and its parts are clipped together
        norm = torch.stack([p.grad.norm() for p in one.parameters() if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(12.0, rel=1e-3)
    trainer.current_epoch = 2
    trainer.on_train_epoch_start()
    assert len({group["lr"] for one in (first, second) for group in one.optimizer.param_groups}) == 1


def test_momentum_of_a_part_of_the_second_network_is_kept_in_a_checkpoint(tiny_dataset):
    dataset = tiny_dataset(dim=2)
    trainer = started(dataset, WithTwoHeads)
    trainer.train_step(next(trainer.dataloader_train))
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    resumed = make_trainer(dataset, WithTwoHeads, resume=True)
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    assert_equal_weights(state_of(trainer), state_of(resumed))
    weight = resumed.parts["second_head"].weight
    assert resumed.networks.trained["second"].optimizer.state[weight]["momentum_buffer"].abs().sum() > 0


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"heads": "second"}, "networks_of_parts names heads, which build_parts does not"),
        ({"head": "third"}, "networks_of_parts: head is trained with third, and the networks are first, second"),
        ({"idle": "second"}, "networks_of_parts names idle, which has an optimiser of its own"),
    ],
)
def test_unknown_names_in_networks_of_parts_are_refused(tiny_dataset, named, expected):
    class Wrong(WithTwoHeads):
        def networks_of_parts(self):
            return named

        def build_part_optimizers(self):
            return {"idle": optimizer_of(self.parts["idle"])}

    with pytest.raises(ValueError, match=expected):
        make_trainer(tiny_dataset(dim=2), Wrong).initialize()


def test_a_parameter_without_gradient_is_not_moved_by_weight_decay(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), WithHead, weight_decay=0.5)
    before = parameters_of(trainer.parts["idle"])
    for _ in range(3):
        trainer.train_step(next(trainer.dataloader_train))
    assert all(torch.equal(value, before[name]) for name, value in parameters_of(trainer.parts["idle"]).items())


def test_network_of_the_model_is_plain(tiny_dataset):
    """Prediction loads nnU-Net's weights: no part is among them."""
    trainer = started(tiny_dataset(dim=2), WithHead)
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    saved = torch.load(f"{trainer.output_folder}/checkpoint_latest.pth", weights_only=False)
    assert saved["network_weights"].keys() == trainer.network.state_dict().keys()
    assert saved["nnunet_ssl"]["parts"].keys() == {"head", "idle"}


def test_each_optimiser_is_clipped_and_scheduled_for_itself(tiny_dataset):
    trainer = started(tiny_dataset(dim=2, num_classes=4), nnUNetTrainerOutside, num_epochs=4)
    assert list(trainer.networks.trained) == ["left", "right", "critic"]
    trainer.current_epoch = 2
    trainer.on_train_epoch_start()
    share = (1 - 1 / 3) ** 0.9  # of the three epochs that follow the pre-training
    rates = [one.optimizer.param_groups[0]["lr"] for one in trainer.networks.trained.values()]
    assert rates == pytest.approx([0.01 * share, 0.01 * share, 1e-3 * share])


def test_an_optimiser_of_no_part_is_refused(tiny_dataset):
    class Wrong(WithHead):
        def build_part_optimizers(self):
            return {"heads": torch.optim.Adam(self.parts["head"].parameters())}

    with pytest.raises(ValueError, match="build_part_optimizers names heads, which build_parts does not"):
        make_trainer(tiny_dataset(dim=2), Wrong).initialize()


class Whole(NetworkWithoutFeatures):
    """Is no U-Net."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1)

    def logits(self, image):
        return self.layer(image)


class BesideAWhole(SemiSupervisedTrainer):
    """Trains a network that is no U-Net beside nnU-Net's, with an optimiser of its own."""

    def build_other_networks(self):
        return {"whole": Whole()}

    def build_part_optimizers(self):
        return {"whole": torch.optim.AdamW(self.networks["whole"].parameters(), lr=1e-3)}

    def training_losses(self, labeled, unlabeled):
        yield {"supervised": self.supervised_loss(labeled)}
        yield {"supervised_of_whole": self.supervised_loss(labeled, "whole")}


def test_a_network_that_is_no_unet_is_trained_validated_and_resumed_with_its_own_optimiser(tiny_dataset):
    dataset = tiny_dataset(dim=2)
    settings = {"seed": 1, "num_epochs": 2, "save_every": 1}
    undisturbed = make_trainer(dataset, BesideAWhole, validate_all_networks=True, **settings)
    undisturbed.run_training()
    first, whole = undisturbed.networks.trained.values()
    assert type(whole.optimizer) is torch.optim.AdamW
    assert whole.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**0.9)
    assert type(first.optimizer) is torch.optim.SGD
    dice = undisturbed.observer.curves.values["dice/whole"]
    assert len(dice) == 2
    undisturbed.perform_actual_validation()
    assert undisturbed.networks["whole"].deep_supervision is False, "put back as it was"

    stopped = make_trainer(dataset, BesideAWhole, validate_all_networks=True, **settings)
    stopped.on_epoch_end = lambda: stop_after_one(stopped)
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    resumed = make_trainer(dataset, BesideAWhole, resume=True)
    assert not hasattr(resumed, "was_resumed")
    resumed.load_checkpoint(f"{resumed.output_folder}/checkpoint_latest.pth")
    resumed.run_training()
    assert_equal_weights(state_of(undisturbed), state_of(resumed))


def stop_after_one(trainer) -> None:
    type(trainer).on_epoch_end(trainer)
    raise KeyboardInterrupt


def test_a_run_knows_while_it_builds_its_networks_whether_it_goes_on(tiny_dataset):
    class Curious(BesideAWhole):
        def build_other_networks(self):
            self.knew = self.was_resumed
            return super().build_other_networks()

    dataset = tiny_dataset(dim=2)
    trainer = started(dataset, Curious)
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    resumed = make_trainer(dataset, Curious, resume=True)
    resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    assert (trainer.knew, resumed.knew) == (False, True)


@pytest.mark.parametrize(
    ("name", "of", "expected"),
    [
        ("network", "network", "build_part_optimizers names network, which nnU-Net trains"),
        ("whole", "network", "the optimiser of network whole has other parameters than the network"),
        ("teacher", "whole", "build_part_optimizers names teacher, which build_parts does not"),
    ],
)
def test_optimisers_of_other_networks_alone_are_taken(tiny_dataset, name, of, expected):
    class Wrong(BesideAWhole):
        def build_part_optimizers(self):
            return {name: optimizer_of(self.networks[of])}

    with pytest.raises(ValueError, match=expected):
        make_trainer(tiny_dataset(dim=2), Wrong).initialize()


def test_unknown_network_is_named(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), WithHead)
    with pytest.raises(KeyError, match="there is no network 'teacher'; there are network"):
        trainer.teacher_probabilities(torch.zeros(1, 1, 16, 16))


def test_gradient_flows_through_a_frozen_module_and_not_into_it(tiny_dataset):
    trainer = started(tiny_dataset(dim=2), WithHead)
    head, idle = trainer.parts["head"], trainer.parts["idle"]
    idle.bias.requires_grad_(False)
    image = torch.ones(1, 4, 2, 2, requires_grad=True)
    with trainer.frozen(nn.ModuleList([head, idle])):
        (head(image) + idle(image)).sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in (*head.parameters(), *idle.parameters()))
    head(image).sum().backward()
    assert head.weight.grad is not None
    assert not idle.bias.requires_grad, "what was frozen before stays so"


def test_memory_of_a_method_is_kept_and_restored(tiny_dataset):
    dataset = tiny_dataset(dim=2, num_classes=4)
    trainer = started(dataset, nnUNetTrainerOutside, pretrain_fraction=0.0, warmup_fraction=0.0)
    trainer.train_step(next(trainer.dataloader_train))
    memory = trainer.state["memory"].means
    assert memory.abs().sum() > 0
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    resumed = make_trainer(dataset, nnUNetTrainerOutside, resume=True)
    resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    assert torch.equal(resumed.state["memory"].means, memory)


def optimizer_of(*modules):
    return torch.optim.SGD([parameter for module in modules for parameter in module.parameters()], lr=0.1)


@pytest.mark.parametrize("optimizers", ["one for two", "of another part too"])
def test_a_parameter_has_one_optimiser(tiny_dataset, optimizers):
    class Wrong(WithHead):
        def build_part_optimizers(self):
            both = optimizer_of(*self.parts.values())
            return {"head": both, "idle": both} if optimizers == "one for two" else {"head": both}

    with pytest.raises(ValueError, match="the optimiser of part head has other parameters than the part"):
        make_trainer(tiny_dataset(dim=2), Wrong).initialize()


def test_a_name_is_given_once(tiny_dataset):
    class Part(WithHead):
        def build_parts(self):
            return {"network": nn.Conv2d(4, 1, 1)}

    class Teacher(WithHead):
        ema_decay = 0.9

        def build_teachers(self):
            return {"network": "network"}

    with pytest.raises(ValueError, match="network is the name of a network and of a part"):
        make_trainer(tiny_dataset(dim=2), Part).initialize()
    with pytest.raises(ValueError, match="build_teachers: network is the name of a network"):
        make_trainer(tiny_dataset(dim=2), Teacher).initialize()


def test_a_network_that_is_no_unet_is_refused_by_name(tiny_dataset):
    class Strange(WithHead):
        def build_other_networks(self):
            return {"strange": nn.Conv2d(1, 2, 1)}

    with pytest.raises(ValueError, match="network strange is a Conv2d, which is no U-Net as nnU-Net builds them"):
        make_trainer(tiny_dataset(dim=2), Strange).initialize()


def test_what_a_checkpoint_lacks_is_said_in_one_sentence(tiny_dataset):
    dataset = tiny_dataset(dim=2)
    trainer = started(dataset, WithHead)
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")

    class WithTeacher(WithHead):
        ema_decay = 0.9

        def build_teachers(self):
            return {"teacher": "network"}

    resumed = make_trainer(dataset, WithTeacher, resume=True)
    with pytest.raises(ValueError, match="the checkpoint has the teachers none, and this trainer teacher: go on with"):
        resumed.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")


@pytest.mark.parametrize("name", ["CPS", "MCNet"])
def test_a_warmup_trains_all_networks_and_parts(tiny_dataset, name):
    trainer = started(tiny_dataset(dim=2), find_trainer(f"nnUNetTrainer{name}"), warmup_fraction=0.5)
    before = [parameters_of(module) for one in trainer.networks.trained.values() for module in one.modules]
    trainer.train_step(next(trainer.dataloader_train))
    after = [parameters_of(module) for one in trainer.networks.trained.values() for module in one.modules]
    assert len(after) == {"CPS": 2, "MCNet": 3}[name]
    for old, new in zip(before, after, strict=True):
        assert any(not torch.equal(value, old[key]) for key, value in new.items())


def test_numbers_recorded_after_the_step_are_kept_and_graphs_are_not(tiny_dataset):
    class Recording(WithHead):
        def training_losses(self, labeled, unlabeled):
            (losses,) = super().training_losses(labeled, unlabeled)
            self.record({"with_graph": losses["head"]})
            yield losses

        def after_step(self):
            self.record({"afterwards": float(self.optimizer_steps)})

    trainer = started(tiny_dataset(dim=2), Recording)
    trainer.train_step(next(trainer.dataloader_train))
    assert trainer.observer.epoch_records["afterwards"] == [1.0]
    assert not trainer.observer.step_records["with_graph"].requires_grad


class GatedUNet(PlainConvUNet):
    """Does something in its forward that is in no part of encoder or decoder."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gates = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(3))

    def forward(self, x):
        return self.decoder([level * gate.sigmoid() for level, gate in zip(self.encoder(x), self.gates, strict=True)])


def gated(name: str) -> type:
    class Gated(find_trainer(name)):
        @staticmethod
        def build_network_architecture(plans_manager, configuration_manager, inputs, outputs, deep_supervision=True):
            arguments = configuration_manager.network_arch_init_kwargs
            named = configuration_manager.network_arch_init_kwargs_req_import
            kinds = {key: arguments[key] and pydoc.locate(arguments[key]) for key in named}
            return GatedUNet(inputs, num_classes=outputs, deep_supervision=deep_supervision, **(arguments | kinds))

    return Gated


def test_an_own_forward_is_what_is_trained_and_what_the_teacher_says(tiny_dataset):
    trainer = started(tiny_dataset(dim=2, stages=3), gated("nnUNetTrainerSSL"), warmup_fraction=0.0)
    trainer.train_step(next(trainer.dataloader_train))
    assert all(gate.item() != 0.0 for gate in trainer.network.gates)
    image = torch.randn(2, 1, 16, 16)
    found = trainer.forward_pass(image)
    for ours, nnunets in zip(found.outputs, trainer.network(image), strict=True):
        assert torch.equal(ours, nnunets)
    teacher = trainer.networks["teacher"]
    assert torch.equal(trainer.networks.forward_pass(image, "teacher").logits, teacher(image))
    assert all(gate.item() != 0.0 for gate in teacher.gates)


def test_a_method_that_needs_encoder_and_decoder_refuses_an_own_forward(tiny_dataset):
    trainer = started(tiny_dataset(dim=2, stages=3), gated("nnUNetTrainerUniMatch"), warmup_fraction=0.0)
    with pytest.raises(ValueError, match="GatedUNet has a forward of its own, and this method needs encoder and decod"):
        trainer.train_step(next(trainer.dataloader_train))


def test_a_schedule_that_a_variant_exchanges_is_followed(tiny_dataset):
    """nnU-Net's warm-up has a rising rate for some epochs, then another schedule."""

    class Warm(nnUNetTrainer_warmup, find_trainer("nnUNetTrainerMeanTeacher")):
        pass

    trainer = make_trainer(tiny_dataset(dim=2), Warm, num_epochs=10)
    trainer.warmup_duration_whole_net, rates = 3, []
    trainer.on_train_start()
    for epoch in range(6):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[0] < rates[1] < rates[2]
    assert rates[2] > rates[4] > rates[5]
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), 0.1)
    trainer.lr_scheduler = trainer._schedule(trainer.optimizer)
    with pytest.raises(ValueError, match="the trainer has exchanged its optimizer after initialize"):
        trainer.on_train_epoch_start()
