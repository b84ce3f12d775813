"""What is wrong in the class of a method is said when the class or the run is made."""

import functools
import importlib

import numpy as np
import pytest
from torch import nn

from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from tests.conftest import make_trainer


class Sound(SemiSupervisedTrainer):
    """Uses what it has: options, functions of its own, what it assigns, and what the base has."""

    rampup_duration = 0.5
    entropy_weight = 0.1

    def training_losses(self, labeled, unlabeled):
        self.seen = len(unlabeled.keys)
        yield {"supervised": self.supervised_loss(labeled)}
        yield {"entropy": self.weight() * self.seen * self.forward_pass(unlabeled.weak).logits.mean()}

    def weight(self):
        return self.entropy_weight * self.ramp("entropy") * self.share

    @property
    def share(self):
        return 1.0 - self.progress


def initialized(dataset, **members):
    trainer = make_trainer(dataset, type("Wrong", (Sound,), members))
    trainer.initialize()


def test_sound_class_is_accepted(tiny_dataset):
    make_trainer(tiny_dataset(dim=2), Sound).run_training()


def misspelt(self, labeled, unlabeled):
    yield {"supervised": self.supervised_loss(labeled) * self.entropy_wieght}


def without_threshold(self, labeled, unlabeled):
    labels, accepted = self.accepted_pseudo_labels(self.network_probabilities(unlabeled.weak))
    yield {"supervised": self.supervised_loss(labeled)}


def of_an_earlier_version(self, labeled, unlabeled):
    yield {"supervised": self.student_outputs(labeled.image)[0].mean()}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"training_losses": misspelt}, r"Wrong has no attribute entropy_wieght: misspelt uses it"),
        (
            {"training_losses": without_threshold},
            r"no attribute confidence_threshold: Method.accepted_pseudo_labels uses",
        ),
        (
            {"training_losses": of_an_earlier_version},
            r"no attribute student_outputs, which is forward_pass\(image\).outp",
        ),
        ({"share": property(lambda self: self.shaer)}, r"no attribute shaer"),
    ],
    ids=["misspelt", "needed by the base", "earlier version", "in a property"],
)
def test_attribute_that_there_is_not_is_named_before_the_first_step(tiny_dataset, members, message):
    with pytest.raises(AttributeError, match=message):
        initialized(tiny_dataset(dim=2), **members)


def reads_strong(self, labeled, unlabeled):
    yield {"supervised": self.supervised_loss(labeled) + self.forward_pass(unlabeled.strong).logits.mean()}


def reads_strong_if_there_is_one(self, labeled, unlabeled):
    image = unlabeled.weak if unlabeled.strong is None else unlabeled.strong
    yield {"supervised": self.supervised_loss(labeled) + self.forward_pass(image).logits.mean()}


def reads_strong_of_something_else(self, labeled, unlabeled):
    unlabeled = self.stronger(unlabeled)
    yield {"supervised": self.supervised_loss(labeled) + self.forward_pass(unlabeled.strong).logits.mean()}


def helper_reads_second_strong(self, unlabeled):
    return unlabeled.second_strong.mean()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"training_losses": reads_strong},
            r'reads_strong reads unlabeled.strong, which VIEWS of Wrong .*: write VIEWS = \("weak", "strong"\)',
        ),
        ({"weight": helper_reads_second_strong}, r'second_strong, .* write VIEWS = \("weak", "second_strong"\)'),
    ],
)
def test_view_that_is_not_asked_for_is_named_before_the_first_step(tiny_dataset, members, message):
    with pytest.raises(AttributeError, match=message):
        initialized(tiny_dataset(dim=2), VIEWS=("weak",), **members)
    initialized(tiny_dataset(dim=2), VIEWS=("weak", "strong", "second_strong"), **members)


def test_view_of_a_batch_by_another_name_is_named(tiny_dataset):
    class Other(Sound):
        VIEWS = ("weak",)

        def training_losses(self, labeled, images):
            yield {"supervised": self.supervised_loss(labeled) + images.strong.mean()}

    with pytest.raises(AttributeError, match=r"Other.training_losses reads images.strong"):
        make_trainer(tiny_dataset(dim=2), Other).initialize()


@pytest.mark.parametrize("losses", [reads_strong_if_there_is_one, reads_strong_of_something_else])
def test_view_that_may_be_missing_raises_no_false_alarm(tiny_dataset, losses):
    stronger = {"stronger": lambda self, batch: batch}
    initialized(tiny_dataset(dim=2), VIEWS=("weak",), training_losses=losses, **stronger)


def head_of(self, image):
    return self.parts["hed"](self.forward_pass(image).features)


def remembered(self):
    return self.state["memory"].means


def asks_first(self):
    return self.parts["hed"](0) if "hed" in self.parts else None


def sets_first(self):
    self.state["memory"] = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"weight": head_of},
            r'head_of uses self.parts\["hed"\], which build_parts of Wrong does not make: write build_p',
        ),
        (
            {"weight": head_of, "build_parts": lambda self: {"head": nn.Conv2d(4, 1, 1)}},
            r'self.parts\["hed"\], which build_parts of Wrong does not make: it makes head',
        ),
        ({"weight": remembered}, r'remembered uses self.state\["memory"\], which build_state of Wrong does not make'),
    ],
)
def test_part_or_state_that_is_not_made_is_named_before_the_first_step(tiny_dataset, members, message):
    with pytest.raises(AttributeError, match=message):
        initialized(tiny_dataset(dim=2), **members)


@pytest.mark.parametrize(
    "members",
    [
        {"weight": head_of, "build_parts": lambda self: {"hed": nn.Conv2d(4, 1, 1)}},
        {"weight": head_of, "build_parts": lambda self: {}},  # by an option, perhaps
        {"weight": head_of, "build_parts": lambda self: {"hed" if self.was_resumed else "one": nn.Conv2d(4, 1, 1)}},
        {"weight": asks_first},
        {"weight": remembered, "on_epoch_start": sets_first},
    ],
)
def test_parts_and_state_that_may_be_made_raise_no_false_alarm(tiny_dataset, members):
    initialized(tiny_dataset(dim=2), **members)


class Numbers:
    """A state that keeps an array."""

    def state_dict(self):
        return {"seen": np.ones(2)}

    def load_state_dict(self, state_dict):
        """Take nothing over."""


def test_state_that_no_checkpoint_can_hold_is_named_before_the_first_step(tiny_dataset):
    with pytest.raises(TypeError, match=r"Wrong: state 'memory'\['seen'\] is a ndarray, which no checkpoint can hold"):
        initialized(tiny_dataset(dim=2), build_state=lambda self: {"memory": Numbers()})


def test_ramp_needs_its_duration(tiny_dataset):
    class Ramping(SemiSupervisedTrainer):
        def training_losses(self, labeled, unlabeled):
            yield {"supervised": self.supervised_loss(labeled) * self.ramp("supervised")}

    with pytest.raises(AttributeError, match="Ramping has no attribute rampup_duration: Method.ramp uses it"):
        make_trainer(tiny_dataset(dim=2), Ramping).initialize()


def test_teachers_need_a_decay(tiny_dataset):
    with pytest.raises(AttributeError, match="Wrong has teachers and no ema_decay"):
        initialized(tiny_dataset(dim=2), build_teachers=lambda self: {"teacher": "network"})
    with pytest.raises(ValueError, match="teacher averages student, and the networks are network"):
        initialized(tiny_dataset(dim=2), build_teachers=lambda self: {"teacher": "student"}, ema_decay=0.9)


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("views", "VIEWS"),
        ("step_cost", "STEP_COST"),
        ("stateful_parts", "build_state"),
        ("other_networks", "build_other_n"),
    ],
)
def test_class_of_an_earlier_version_is_refused_with_the_new_name(name, now):
    with pytest.raises(TypeError, match=rf"Earlier.{name} is called {now}.*CHANGELOG"):
        type("Earlier", (Sound,), {name: None})


def test_method_for_other_dimensions_is_refused_by_name(tiny_dataset):
    with pytest.raises(NotImplementedError, match="Wrong is for 3-D patches, and those of configuration 2d are 2-D"):
        initialized(tiny_dataset(dim=2), DIMENSIONS=(3,))


def test_file_that_was_edited_since_raises_no_false_alarm(tiny_dataset, tmp_path, monkeypatch):
    """Its lines are others than those of the class that was loaded."""
    source = """
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer


class Edited(SemiSupervisedTrainer):
    def training_losses(self, labeled, unlabeled):
        yield {"supervised": self.supervised_loss(labeled)}
"""
    file = tmp_path / "edited_trainer.py"
    file.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    trainer_class = importlib.import_module("edited_trainer").Edited
    file.write_text(source.replace("supervised_loss", "new_loss"))
    make_trainer(tiny_dataset(dim=2), trainer_class).initialize()


class Legitimate(Sound):
    """Uses itself in all ways in which Python lets it."""

    def ramp(self, name):
        return 0.5  # and so needs no rampup_duration

    def training_losses(self, labeled, unlabeled):
        class Inner:
            def __init__(self):
                self.of_inner = 1

            def read(self):
                return self.of_inner

        def twice(self):
            return 2 * self.of_something_else

        self.by_name = 1.0
        scale = self.__hidden() * self.cached * self.by_name * self.of_the_mixin * Inner().read()
        if hasattr(self, "perhaps"):
            scale = scale * self.perhaps
        self.doubled = scale
        yield {"supervised": self.supervised_loss(labeled) * self.doubled + 0.0 * len(self.streams)}

    def __hidden(self):
        return self.ramp("hidden")

    @functools.cached_property
    def cached(self):
        self.set_in_passing = 1.0
        return self.set_in_passing

    @property
    def doubled(self):
        return 2.0 * vars(self).get("half", 0.5)  # nnU-Net reads all properties when it writes debug.json

    @doubled.setter
    def doubled(self, value):
        self.half = value / 2.0


class Mixin:
    """Is no trainer."""

    def on_train_start(self):
        self.of_the_mixin = 1.0
        super().on_train_start()


def test_legitimate_ways_raise_no_false_alarm(tiny_dataset):
    make_trainer(tiny_dataset(dim=2), type("Mixed", (Mixin, Legitimate), {}), num_epochs=1).run_training()


def test_what_a_mixin_defines_or_misses_is_named(tiny_dataset):
    with pytest.raises(TypeError, match="Old.views is called VIEWS"):
        type("New", (type("Old", (), {"views": ("weak",)}), Sound), {})
    mixin = type("Mixin", (), {"weight": lambda self: self.entropy_wieght})
    with pytest.raises(AttributeError, match="no attribute entropy_wieght"):
        make_trainer(tiny_dataset(dim=2), type("New", (mixin, Sound), {})).initialize()


def test_losses_of_a_stage_that_there_is_are_asked_for_before_the_first_step(tiny_dataset):
    with pytest.raises(NotImplementedError, match="Sound has a pretrain_fraction: write pretraining_losses"):
        make_trainer(tiny_dataset(dim=2), Sound, pretrain_fraction=0.1).initialize()
    silent = type("Silent", (SemiSupervisedTrainer,), {})
    with pytest.raises(NotImplementedError, match="Silent does not say what its losses are: write training_losses"):
        make_trainer(tiny_dataset(dim=2), silent).initialize()
