"""What README.md and docs/ say: links that lead somewhere, names that there are, and an example that trains."""

import inspect
import math
import os
import re
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_ssl.building_blocks.features import Pass
from nnunet_ssl.building_blocks.label_space import LabelSpace, SoftmaxLabels
from nnunet_ssl.commands.trainers import in_words
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.discovery.startup import SHIM_FOLDER
from nnunet_ssl.discovery.variants import find_trainer
from nnunet_ssl.training.author_checks import RENAMED
from nnunet_ssl.training.catalog import all_trainers, types_of_options
from nnunet_ssl.training.dual_network_trainer import DualNetworkTrainer
from nnunet_ssl.training.method import Method
from nnunet_ssl.training.options import NUMBERS, allowed_options, check_ranges, parse_options
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer
from nnunet_ssl.training.teacher_student_trainer import TeacherStudentTrainer
from tests.conftest import make_trainer
from tests.warm_processes import start_command

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
METHODS = (ROOT / "docs" / "methods.md").read_text()
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(#[^)\s]*)?\)")
EXAMPLE = re.compile(r"<!-- example: (\w+)\.py -->\n```python\n(.*?)```", re.DOTALL)
LOSSES_OF_EXAMPLES = {
    "nnUNetTrainerDroppedFeatures": ("supervised", "consistency"),
    "nnUNetTrainerSurerHead": ("supervised", "head", "pseudo_label"),
}
PRESETS = (TeacherStudentTrainer, DualNetworkTrainer)


def headings(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


def section(text: str, title: str) -> str:
    """Return what stands below a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {title}"
    return found[1]


def section_of(trainer: type) -> str:
    """Return what docs/methods.md says of a trainer; its sections begin with the trainer's name."""
    sections = re.split(r"^## ", METHODS, flags=re.MULTILINE)
    found = [text for text in sections if f"`{trainer.__name__}`" in text.partition("\n\n")[2].partition("\n")[0]]
    assert len(found) == 1, f"docs/methods.md has {len(found)} sections of {trainer.__name__}"
    return found[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_relative_links_lead_somewhere(document):
    for target, anchor in LINK.findall(re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)):
        file = (document.parent / target) if target else document
        assert file.exists(), f"{document.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor[1:] in headings(file.read_text()), f"{document.name} links to {target}{anchor}"


@pytest.mark.parametrize("trainer", all_trainers(), ids=lambda trainer: trainer.__name__)
def test_each_trainer_stands_in_methods_with_its_cost_and_defaults(trainer):
    text = section_of(trainer)
    cost = f"{trainer.STEP_COST:.2f}".removesuffix(".00")
    assert f"costs {cost}" in text.replace("\n", " ")
    types = types_of_options(trainer)
    defaults = re.findall(r"`([a-z_]+)=([^`\s]+)`", text)
    assert defaults, "no option is named"
    for name, value in defaults:
        assert name in types, f"{trainer.__name__} has no option {name}"
        assert value == in_words(getattr(trainer, name)), f"{name} of {trainer.__name__}"


@pytest.mark.parametrize("trainer", all_trainers(), ids=lambda trainer: trainer.__name__)
def test_other_values_that_methods_speaks_of_can_be_given(trainer):
    """Such as `blocks_per_axis=4` (0: one box as in BCP)."""
    allowed = allowed_options(trainer, nnUNetTrainer)
    others = re.findall(r"`([a-z_]+)=[^`\s]+`\s\(`?(?:both )?(\d[\d.]*|true|false)\b", section_of(trainer))
    for name, value in others:
        check_ranges(parse_options(f"{name}={value}", allowed))
    assert others or trainer.__name__ != "nnUNetTrainerM3HL"


def test_architecture_names_each_room():
    rooms = section(ARCHITECTURE, "The rooms of `training/`")
    for file in (ROOT / "nnunet_ssl" / "training").glob("[!_]*.py"):
        assert f"`{file.name}`" in rooms, file.name


def test_architecture_names_each_hook_that_is_overridden():
    hooks = section(ARCHITECTURE, "Which hooks of nnU-Net are overridden, and why").partition("Not overridden")[0]
    ours = [cls for cls in SemiSupervisedTrainer.__mro__ if issubclass(cls, (nnUNetTrainer, Method))]
    written = {name for cls in ours if cls is not nnUNetTrainer for name in vars(cls) if not name.startswith("_")}
    overridden = {name for name in written if hasattr(nnUNetTrainer, name)}
    assert overridden
    assert (
        set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in hooks.splitlines() if "|" in row)))
        == overridden
    )


def test_architecture_names_the_endings_of_options():
    text = section(ARCHITECTURE, "Facts and options")
    table = "".join(row.split("|")[1] for row in text.splitlines() if row.startswith("| `_"))
    assert set(re.findall(r"`(\w+)`", table)) == set(NUMBERS)


def test_no_document_speaks_of_names_of_earlier_versions():
    """CHANGELOG.md does; a name that something else has by now is left alone."""
    earlier = {name for name in RENAMED if "_" in name and not hasattr(SemiSupervisedTrainer, name)}
    for document in DOCUMENTS:
        if document.name != "CHANGELOG.md":
            assert not {*re.findall(r"\w+", document.read_text())} & earlier, document.name


def first_column(title: str) -> list[str]:
    """Return what stands in backquotes in the first column of the table below a heading of the third level."""
    text = section(ARCHITECTURE, "What a method may write and call").partition(f"### {title}\n")[2]
    return first_column_of(text.partition("\n### ")[0])


def first_column_of(text: str) -> list[str]:
    """Return what stands in backquotes in the first column of a table."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows, "there is no table"
    return re.findall(r"`([^`]+)`", "".join(row.split("|")[1] for row in rows))


def as_called(cls: type, name: str) -> str:
    """Return how an author reads a member of a class: as a function with its arguments, or by its name."""
    member = getattr(cls, name, None)
    if not callable(member):
        return name
    arguments = [one.replace(annotation=one.empty) for one in inspect.signature(member).parameters.values()][1:]
    return f"{name}({', '.join(map(str, arguments))})".replace("'", '"')


def public_names(*classes: type) -> set[str]:
    """Return what an author may read of an object of the first class, written by the classes given."""
    names = {name for cls in classes for name in {*vars(cls), *inspect.get_annotations(cls)}}
    return {as_called(classes[0], name) for name in names if not name.startswith("_")}


def test_architecture_lists_what_a_method_may_write_and_call():
    listed = [*first_column("What it writes"), *first_column("What it calls")]
    assert len(set(listed)) == len(listed)
    assert set(listed) == public_names(Method)


def test_architecture_lists_what_batches_passes_and_label_spaces_hold():
    listed = first_column("Batches, passes and labels")
    expected = {"labeled": [LabeledBatch], "unlabeled": [UnlabeledBatch], "label_space": [SoftmaxLabels, LabelSpace]}
    names = {f"{whose}.{name}" for whose, classes in expected.items() for name in public_names(*classes)}
    assert len(set(listed)) == len(listed)
    assert set(listed) == names | {f"Pass.{name}" for name in (*Pass._fields, "logits")}


def test_what_architecture_lets_an_author_read_is_there(tiny_dataset):
    """In the paragraph below the tables: options of the presets, and what a trainer has beside `Method`."""
    calls = section(ARCHITECTURE, "What a method may write and call").partition("### Batches")[0]
    trainer = make_trainer(tiny_dataset(dim=2), find_trainer("nnUNetTrainerCPS"))
    trainer.initialize()
    names = re.findall(r"`self\.(\w+)", calls)
    assert {"networks", "device"} <= {*names}
    assert not [name for name in names if not hasattr(trainer, name)]
    assert all(
        f"`{name}`" in calls for cls in PRESETS for name in vars(cls) if name in allowed_options(cls, nnUNetTrainer)
    )


@pytest.fixture(params=EXAMPLE.findall(ARCHITECTURE), ids=lambda example: example[0])
def own_method(request, tmp_path, monkeypatch):
    """Return a class that docs/architecture.md writes, found as nnUNetv2_train finds it."""
    name, source = request.param
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / f"{name}.py").write_text(source)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path / "own"), SHIM_FOLDER]))
    return recursive_find_trainer_class_by_name(name)


def test_own_method_trains_and_its_checkpoint_holds_what_is_said(tiny_dataset, own_method):
    trainer = make_trainer(tiny_dataset(), own_method, num_epochs=1)
    trainer.run_training()
    assert trainer.optimizer_steps == 2
    losses = {name: values[-1] for name, values in trainer.observer.curves.values.items() if name.startswith("loss/")}
    assert losses.keys() == {f"loss/{name}" for name in LOSSES_OF_EXAMPLES[own_method.__name__]}
    assert all(math.isfinite(value) for value in losses.values())
    explained = first_column_of(section(ARCHITECTURE, "What the curves count"))
    kinds = {name.partition("/")[0] for name in explained}
    assert {name.partition("/")[0] for name in trainer.observer.curves.values} <= {*kinds, "usual_confidence"}
    assert {"confident", "agreement", "utilization", "labeled", "pseudo_label", "step_seconds"} <= kinds
    checkpoint = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
    rows = [row for row in section(ARCHITECTURE, "What a checkpoint holds").splitlines() if row.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in rows))) == checkpoint["nnunet_ssl"].keys()


def test_part_state_and_curve_of_an_own_method_are_kept(tiny_dataset, own_method):
    if own_method.__name__ != "nnUNetTrainerSurerHead":
        pytest.skip("has none")
    trainer = make_trainer(tiny_dataset(dim=2), own_method, num_epochs=1)
    trainer.run_training()
    ours = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)["nnunet_ssl"]
    assert (list(ours["parts"]), list(ours["state"])) == (["head"], ["usual"])
    assert 0.4 < float(ours["state"]["usual"]["value"]) < 1
    assert float(ours["state"]["usual"]["value"]) != 0.5, "it moves after a step"
    assert ours["curves"]["usual_confidence"] == [pytest.approx(0.5, abs=0.01)]


def test_contract_suite_takes_the_trainers_of_a_folder(tmp_path):
    """By the command of the page, which here only lists the tests."""
    for name, source in EXAMPLE.findall(ARCHITECTURE):
        (tmp_path / f"{name}.py").write_text(source)
    ((folder, command),) = re.findall(r"^nnUNet_extTrainer=(\S+) python -m (pytest .*)$", ARCHITECTURE, re.MULTILINE)
    environment = os.environ | {"nnUNet_extTrainer": folder.replace("/path/to/folder", str(tmp_path))}
    log = tmp_path / "log"
    process = start_command([*command.split(), "--collect-only", "-q"], log, ROOT, environment)
    process.join(timeout=120)
    listed = log.read_text()
    assert process.exitcode == 0, listed
    for test in ("test_steps_in_every_setting", "test_resumed_run_equals_undisturbed_run", "test_gradients_reach_all"):
        assert re.search(rf"::{test}.*nnUNetTrainerSurerHead", listed), test
    assert "DroppedFeatures" not in listed


@pytest.mark.parametrize("dim", [2, 3])
def test_own_method_steps_in_2d_and_3d(tiny_dataset, own_method, dim):
    """With regions and an ignore label, of which its author need not think."""
    trainer = make_trainer(tiny_dataset(dim=dim, num_classes=4, regions=True, ignore=True), own_method, num_epochs=1)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
    assert math.isfinite(loss)
