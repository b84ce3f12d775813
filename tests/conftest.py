"""Tiny plans, tiny data, tiny trainers: a step takes milliseconds on one core."""

import copy
import functools
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("nnUNet_n_proc_DA", "0")
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ["nnUNet_compile"] = "f"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch, in what the tests start too: several of them run at once
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # nnU-Net's commands take all cores: no thread may spin

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import settings
from nnunetv2.training.dataloading import data_loader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.data.stamps import folder_of
from nnunet_ssl.training.curves import Curves
from tests.warm_processes import WARM

DATASET = "Dataset999_Tiny"
SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"  # real data, where they are at hand
FIRST_STAGE, SECOND_STAGE, NEXT_STAGE = "3d_lowres", "3d_cascade_fullres", "predicted_next_stage"  # of a cascade
torch.set_num_threads(1)
settings.register_profile("equal", deadline=None, derandomize=True)  # the same examples each time, however busy it is
settings.load_profile("equal")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give the next test to the next free process; files that train or install once for many tests go first, whole."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            is_whole = file.endswith(("test_end_to_end.py", "test_packaging.py")) and test != "test_real_hippocampus"
            return file if is_whole else nodeid

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def seeded():
    """Let each test draw the same numbers wherever and after whatever it runs."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@dataclass(frozen=True)
class Case:
    """One cell of the matrix over which trainers are tested."""

    dim: int = 3
    residual: bool = False
    num_classes: int = 2  # with background
    regions: bool = False
    ignore: bool = False
    batch_size: int = 2
    anisotropic: bool = False
    masked: bool = False  # normalised inside the image only
    stages: int = 3  # those beyond the third do not lower the resolution
    cascade: bool = False  # the second stage of one, in 3d
    batch_dice: bool | None = None  # None: as nnU-Net plans it, in 2d

    @property
    def configuration(self) -> str:
        return SECOND_STAGE if self.cascade else self.configuration_of_data

    @property
    def configuration_of_data(self) -> str:
        return "3d_fullres" if self.dim == 3 else "2d"

    @property
    def patch_size(self) -> list[int]:
        if self.dim == 2:
            return [16, 16]
        return [4, 16, 16] if self.anisotropic else [16, 16, 16]

    def dataset_json(self) -> dict:
        labels = {"background": 0} | {f"class{i}": i for i in range(1, self.num_classes)}
        extra = {}
        if self.regions:
            labels = {"background": 0, "whole": list(range(1, self.num_classes)), "core": self.num_classes - 1}
            extra = {"regions_class_order": [1, self.num_classes - 1]}
        if self.ignore:
            labels["ignore"] = self.num_classes
        return {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz"} | extra

    def plans(self) -> dict:
        dim, conv = self.dim, "Conv3d" if self.dim == 3 else "Conv2d"
        stages, stride = self.stages, [1, 2, 2] if self.anisotropic else [2] * dim
        encoder = "n_blocks_per_stage" if self.residual else "n_conv_per_stage"
        network = "ResidualEncoderUNet" if self.residual else "PlainConvUNet"
        resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
        configuration = {
            "data_identifier": f"nnUNetPlans_{self.configuration_of_data}",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": self.batch_size,
            "patch_size": self.patch_size,
            "median_image_size_in_voxels": self.patch_size,
            "spacing": [1.0] * dim,
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [self.masked],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": resampling,
            "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": resampling,
            "architecture": {
                "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
                "arch_kwargs": {
                    "n_stages": stages,
                    "features_per_stage": [4, 8, *[16] * (stages - 2)],
                    "conv_op": f"torch.nn.modules.conv.{conv}",
                    "kernel_sizes": [[3] * dim] * stages,
                    "strides": [[1] * dim, stride, stride, *[[1] * dim] * (stages - 3)][:stages],
                    "conv_bias": True,
                    "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
                    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                    encoder: [1] * stages,
                    "n_conv_per_stage_decoder": [1] * (stages - 1),
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
            "batch_dice": dim == 2 if self.batch_dice is None else self.batch_dice,
        }
        configurations = {self.configuration_of_data: configuration}
        if self.cascade:
            smaller = {"spacing": [2.0] * 3, "patch_size": [8] * 3, "data_identifier": f"nnUNetPlans_{FIRST_STAGE}"}
            configurations[FIRST_STAGE] = {"inherits_from": "3d_fullres", "next_stage": SECOND_STAGE} | smaller
            configurations[SECOND_STAGE] = {"inherits_from": "3d_fullres", "previous_stage": FIRST_STAGE}
        return {
            "dataset_name": DATASET,
            "plans_name": "nnUNetPlans",
            "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
            "original_median_shape_after_transp": [20, 20, 20],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": configurations,
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {
                "0": {
                    "max": 9.0,
                    "mean": 1.0,
                    "median": 1.0,
                    "min": 0.0,
                    "percentile_00_5": 0.0,
                    "percentile_99_5": 9.0,
                    "std": 1.0,
                }
            },
        }


@dataclass
class TinyDataset:
    """A preprocessed data set on disk, made without nnU-Net's planner."""

    case: Case
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "preprocessed" / DATASET

    @property
    def labeled_folder(self) -> Path:
        return self.folder / f"nnUNetPlans_{self.case.configuration_of_data}"

    @property
    def unlabeled_folder(self) -> Path:
        return folder_of(self.folder, self.labeled_folder.name)

    @property
    def images_un(self) -> Path:
        return self.root / "raw" / DATASET / "imagesUn"

    def write(self) -> "TinyDataset":
        for folder in (self.labeled_folder, self.unlabeled_folder):
            folder.mkdir(parents=True)
            if self.case.cascade:
                self.in_first_stage(folder).mkdir()
        (self.root / "raw").mkdir()
        (self.root / "results").mkdir()
        plans, dataset_json = self.case.plans(), self.case.dataset_json()
        (self.folder / "nnUNetPlans.json").write_text(json.dumps(plans))
        (self.folder / "dataset.json").write_text(json.dumps(dataset_json))
        (self.folder / "dataset_fingerprint.json").write_text("{}")
        for i in range(4):
            self.write_case(self.labeled_folder, f"labeled{i}", seed=i)
        for i in range(3):
            self.write_case(self.unlabeled_folder, f"unlabeled{i}", seed=100 + i, has_label=False)
        self.write_splits([{"train": ["labeled0", "labeled1"], "val": ["labeled2", "labeled3"]}] * 2)
        return self

    @staticmethod
    def in_first_stage(folder: Path) -> Path:
        return folder.with_name(folder.name.replace("3d_fullres", FIRST_STAGE))

    @property
    def segmented(self) -> Path:
        """nnU-Net's folder of what the first stage has segmented of labeled cases, but for the name of the trainer."""
        return self.root / "results" / DATASET / f"{{}}__nnUNetPlans__{FIRST_STAGE}" / NEXT_STAGE / SECOND_STAGE

    def write_first_stage(self, trainer: str, fold: int | str = 0) -> Path:
        """Write what a first stage leaves, segmentations of labeled cases and a model; return the folder of its run."""
        segmented = Path(str(self.segmented).format(trainer))
        segmented.mkdir(parents=True, exist_ok=True)
        for i in range(4):
            noise = np.random.default_rng(i).integers(0, self.case.num_classes, (5, 5, 5), dtype=np.uint8)
            nnUNetDatasetBlosc2.save_seg(np.kron(noise, np.ones((4, 4, 4), np.uint8)), str(segmented / f"labeled{i}"))
        plans = PlansManager(copy.deepcopy(self.case.plans()))
        configuration, heads = plans.get_configuration(FIRST_STAGE), plans.get_label_manager(self.case.dataset_json())
        run = segmented.parents[1] / f"fold_{fold}"
        run.mkdir(exist_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nnUNetTrainer.build_network_architecture(
                plans, configuration, 1, heads.num_segmentation_heads, False
            )
        model = {"network_weights": network.state_dict(), "trainer_name": trainer, "current_epoch": 2}
        model |= {"init_args": {"configuration": FIRST_STAGE}, "inference_allowed_mirroring_axes": None}
        torch.save(model, run / "checkpoint_final.pth")
        return run

    def write_splits(self, splits: list[dict]) -> None:
        (self.folder / "splits_final.json").write_text(json.dumps(splits))

    def write_case(self, folder: Path, name: str, seed: int, has_label: bool = True) -> None:
        rng = np.random.default_rng(seed)
        shape = (6, 20, 20) if self.case.anisotropic else (20, 20, 20)
        seg = np.zeros((1, *shape), dtype=np.int16)
        for label in range(1, self.case.num_classes + int(self.case.ignore)):
            start = [int(rng.integers(0, size - size // 2 + 1)) for size in shape]
            box = tuple(slice(s, s + size // 2) for s, size in zip(start, shape, strict=True))
            seg[0][box] = label
        image = (rng.normal(size=(1, *shape)) + seg).astype(np.float32)
        image[:, :, :3] = 0 if self.case.masked else image[:, :, :3]
        properties = {
            "spacing": [1.0, 1.0, 1.0],
            "sitk_stuff": {"spacing": (1.0,) * 3, "origin": (0.0,) * 3, "direction": tuple(np.eye(3).ravel())},
            "shape_before_cropping": shape,
            "shape_after_cropping_and_before_resampling": shape,
            "bbox_used_for_cropping": [[0, size] for size in shape],
            "class_locations": {},
        }
        if has_label:
            manager = PlansManager(copy.deepcopy(self.case.plans())).get_label_manager(self.case.dataset_json())
            wanted = manager.foreground_regions if manager.has_regions else manager.foreground_labels
            keys = [*wanted, *([(-1, *manager.all_labels)] if manager.has_ignore_label else [])]
            for key in keys:
                found = np.argwhere(np.isin(seg, key))
                properties["class_locations"][tuple(map(int, key)) if isinstance(key, tuple) else int(key)] = found
            reference = self.folder / "gt_segmentations" / f"{name}.nii.gz"
            reference.parent.mkdir(exist_ok=True)
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(seg[0].astype(np.uint8)), str(reference))
        else:
            seg[:] = 0
        nnUNetDatasetBlosc2.save_case(
            image, seg, properties, str(folder / name), chunks=image.shape, blocks=image.shape
        )
        if self.case.cascade:
            image, seg = (np.ascontiguousarray(one[:, ::2, ::2, ::2]) for one in (image, seg))
            where = {key: found[:, :] // [1, 2, 2, 2] for key, found in properties["class_locations"].items()}
            target = str(self.in_first_stage(folder) / name)
            properties = properties | {"class_locations": where}
            nnUNetDatasetBlosc2.save_case(image, seg, properties, target, chunks=image.shape, blocks=image.shape)


@pytest.fixture(scope="session", autouse=True)
def _processes_are_warm():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(multiprocessing.context._concrete_contexts, "spawn", WARM)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_search_for_thread_pools():
    """Leave out nnU-Net's search through all libraries, in each batch, for pools that here are of one thread anyway."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(data_loader, "threadpool_limits", lambda **_: nullcontext())
        yield


@pytest.fixture(scope="session")
def written_once(tmp_path_factory):
    """Return a function that gives the folder of a case's data set, to be copied."""
    return functools.cache(lambda case: TinyDataset(case, tmp_path_factory.mktemp("written")).write().root)


@pytest.fixture
def tiny_dataset(tmp_path, monkeypatch, written_once):
    """Return a function that writes a tiny data set and points nnU-Net's variables at it."""

    draw_no_progress(monkeypatch.setattr)

    def make(**cell) -> TinyDataset:
        root = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        dataset = TinyDataset(Case(**cell), root)
        shutil.copytree(written_once(dataset.case), root)
        for name in ("raw", "preprocessed", "results"):
            monkeypatch.setenv(f"nnUNet_{name}", str(root / name))
        monkeypatch.delenv("nnUNet_ssl_options", raising=False)
        return dataset

    return make


def draw_no_progress(replace: Callable[[type, str, Callable], None] = setattr) -> None:
    """Leave out the progress pictures, which take most of a tiny run's time and have tests of their own."""
    replace(MetaLogger, "plot_progress_png", lambda *_, **__: None)
    replace(Curves, "plot", lambda *_, **__: None)


# What a method has to be told of data with several labels, if it has such an option.
OPTIONS_OF_DATA = {"elliptic_label": lambda case: "whole" if case.regions else str(case.num_classes - 1)}
# Of pretrained networks: a small one that starts at random.
OPTIONS_OF_NETWORKS = {"encoder": "tu-test_resnet", "encoder_weights": "none", "adapter_rank": 4}
LIBRARY_OF_NETWORKS = "segmentation_models_pytorch"


def is_at_hand(trainer_class: type) -> bool:
    """Return whether what a method needs beside nnU-Net is installed."""
    return not hasattr(trainer_class, "encoder_weights") or importlib.util.find_spec(LIBRARY_OF_NETWORKS) is not None


def make_trainer(
    dataset: TinyDataset,
    trainer_class: type,
    fold: int | str = 0,
    resume: bool = False,
    configuration: str | None = None,
    **settings,
):
    """Construct a trainer as nnUNetv2_train does, with a length of a few steps; of a cascade it is the second stage."""
    plans, configuration = (
        dataset.case.plans() | {"continue_training": resume},
        configuration or dataset.case.configuration,
    )
    if configuration == SECOND_STAGE and not Path(str(dataset.segmented).format(trainer_class.__name__)).exists():
        dataset.write_first_stage(trainer_class.__name__, fold)
    trainer = trainer_class(plans, configuration, fold, dataset.case.dataset_json(), torch.device("cpu"))
    defaults = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
    if hasattr(trainer, "training_losses"):
        told = {name: of(dataset.case) for name, of in OPTIONS_OF_DATA.items() if hasattr(trainer_class, name)}
        told |= {name: value for name, value in OPTIONS_OF_NETWORKS.items() if hasattr(trainer_class, name)}
        if trainer_class.prediction_rounds:
            told |= {"predicts_mirrored": False}  # an eighth of the passes
        if not is_at_hand(trainer_class):
            pytest.skip(f"{LIBRARY_OF_NETWORKS} is not installed")
        if not resume:  # a test may train again in the same folder
            trainer.options = defaults | told | {"replace": True} | settings
    else:
        for name, value in (defaults | settings).items():
            setattr(trainer, name, value)
    return trainer


def started(dataset: TinyDataset, trainer_class: type, **settings):
    """Return a seeded trainer with loaders, at the start of its first epoch."""
    trainer = make_trainer(dataset, trainer_class, **{"seed": 1} | settings)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def parameters_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def tensors_of(state: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return all tensors of a state, an optimiser's nested one too, by their path."""
    found = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= tensors_of(value, f"{prefix}{key}/")
        elif isinstance(value, torch.Tensor):
            found[f"{prefix}{key}"] = value
    return found


def state_of(trainer) -> dict[str, torch.Tensor]:
    """Return all tensors of a run: networks, teachers, parts, optimisers and what the method keeps, by their path."""
    kept = {name: one.state_dict() for name, one in trainer.state.items()}
    state = trainer.networks.state_dict() | {"optimizer": trainer.optimizer.state_dict(), "state": kept}
    return tensors_of(copy.deepcopy(state))


def assert_equal_weights(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
