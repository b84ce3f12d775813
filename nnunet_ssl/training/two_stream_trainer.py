"""nnU-Net's trainer with a second, unlabeled stream of batches."""

import os
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_ssl.data.checksums import CheckedDataset, PreprocessedFiles
from nnunet_ssl.data.labeled_cases import labeled_files, refuse_missing, refuse_unfinished
from nnunet_ssl.data.loader_processes import WORKER_SECONDS
from nnunet_ssl.data.loaders import (
    TwoStreamLoader,
    UnlabeledLoader,
    close_loader,
    divide_workers,
    labeled_loader,
    start_loader,
)
from nnunet_ssl.data.meta_labels import refuse_pattern_of_one_phase
from nnunet_ssl.data.older_conversions import older_conversion
from nnunet_ssl.data.plans_file import refuse_bad_plans
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset
from nnunet_ssl.data.raw_files import RawDataset, refuse_bad_dataset_json
from nnunet_ssl.data.split_file import (
    NO_ESTIMATE,
    read_splits,
    unlabeled_cases_of_fold,
    write_first_split,
)
from nnunet_ssl.data.stamps import folder_of
from nnunet_ssl.data.trained_cases import (
    CASES,
    TrainedCases,
    cases_to_validate,
)
from nnunet_ssl.data.unlabeled_pool import UnlabeledPool, collect_pool, twins_warning
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing
from nnunet_ssl.leaks.of_training import LookAtTraining
from nnunet_ssl.training import distributed, reproducibility
from nnunet_ssl.training.first_weights import FirstWeights, cases_before
from nnunet_ssl.training.mirroring_trainer import MirroringTrainer
from nnunet_ssl.training.options import allowed_options

STREAMS = {"labeled": 0, "unlabeled": 1, "validation": 2, "step": 3, "network": 4}  # each draws its own random numbers


class TwoStreamTrainer(MirroringTrainer):
    """Finds a fold's unlabeled cases, preprocesses what is missing of them, and loads them beside the labeled ones."""

    VIEWS: tuple[str, ...]  # of each unlabeled patch, as the method says; see data/views.py
    seed: int | None = None  # None: not reproducible, as nnU-Net
    pseudo_foreground_probability: float  # of an unlabeled patch; see pool_trainer.py
    worker_seconds = WORKER_SECONDS  # in which a process that loads images has to do something; ours
    _split_digests: Mapping[str, Any] = MappingProxyType({})  # of the cases that are trained on, once they are known
    _validates, streams = False, ()  # the labeled and the unlabeled loader, once they are made

    @property
    def epoch_is_labeled_only(self) -> bool:
        """Whether no step of the epoch takes unlabeled images, which are then not loaded."""
        return False

    def initialize(self) -> None:
        """Initialise as nnU-Net does, unless plans, dataset.json or preprocessed cases are not what they have to be."""
        refuse_bad_plans(self.plans_manager.plans, self.configuration_name, f"{self.plans_manager.plans_name}.json")
        refuse_bad_dataset_json(self.dataset_json, "dataset.json")
        refuse_missing(Path(self.preprocessed_dataset_folder), *self._names_of_plans)
        super().initialize()

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split, or while validating that of the run, see `_split_of_today`."""
        if not self._validates:
            return self._split_of_today()
        try:
            today = self._split_of_today()
        except ValueError:
            if CASES not in self._split_digests:
                raise
            today = None
        train, validation, warning = cases_to_validate(self._split_digests, today, self.fold)
        if warning:
            self.print_to_log_file(f"WARNING: {warning}")
            self._refuse_unfinished(validation)
        for case in validation:
            self._labeled_files.check(case)
        return train, validation

    def get_tr_and_val_datasets(self) -> tuple[CheckedDataset, CheckedDataset]:
        """Return nnU-Net's data sets of training and validation cases, which read none that is damaged."""
        train, validation = super().get_tr_and_val_datasets()
        return CheckedDataset(train, self._labeled_files), CheckedDataset(validation, self._labeled_files)

    @cached_property
    def _labeled_files(self) -> PreprocessedFiles:
        return labeled_files(Path(self.preprocessed_dataset_folder), *self._names_of_plans)

    @property
    def _names_of_plans(self) -> tuple[str, str, str]:
        """The data set, the plans and the configuration."""
        return self.plans_manager.dataset_name, self.plans_manager.plans_name, self.configuration_name

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate as nnU-Net does, with the cases that the run began with."""
        self._validates = True
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self._validates = False

    def _split_of_today(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split; a fold that there is not is an error, and few cases have folds that fit."""
        file = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
        if self.fold == "all" or not file.exists():  # nnU-Net then takes what is there for all that there is
            self._refuse_unfinished(self._cases_with_label())
        if self.fold == "all":
            return super().do_split()
        cases = infer_dataset_class(self.preprocessed_dataset_folder).get_identifiers(self.preprocessed_dataset_folder)
        if written := write_first_split(file, cases, self.dataset_json.get("patient_pattern")):
            self.print_to_log_file(written)
        folds = len(read_splits(file))
        if not 0 <= self.fold < folds:
            there_are = f"the folds 0 to {folds - 1}" if folds > 1 else "fold 0 only"
            raise ValueError(f"there is no fold {self.fold}: {file} has {there_are}")
        train, validation = super().do_split()
        self._refuse_unfinished({*train, *validation})
        if set(train) == set(validation):
            self.print_to_log_file(f"WARNING: {NO_ESTIMATE}")
        return train, validation

    def _refuse_unfinished(self, cases: Iterable[str]) -> None:
        """Notice an interrupted preprocessing of labeled cases before that of the unlabeled ones begins."""
        refuse_unfinished(Path(self.preprocessed_dataset_folder), cases, *self._names_of_plans)

    def _cases_with_label(self) -> list[str]:
        """Return the labeled cases of the raw data set; none where it is not at hand."""
        raw = Path(nnUNet_raw.get() or "$nnUNet_raw", self.plans_manager.dataset_name)
        return list(RawDataset.open(raw).labels()) if (raw / "dataset.json").is_file() else []

    def get_dataloaders(self) -> tuple[TwoStreamLoader, Any]:
        """Return nnU-Net's loaders, the training one joined by the unlabeled stream."""
        dataset = self._unlabeled_images(self._collect_pool())
        labeled, validation = self._loaders_of_nnunet()
        if self.batch_size == 1 < self.configuration_manager.batch_size:
            self.print_to_log_file(f"WARNING: {distributed.SINGLE_PATCHES}")
        refuse_pattern_of_one_phase(getattr(self, "phase_pattern", None), [*labeled.indices, *dataset.identifiers])
        bins = getattr(self, "position_bins", None)  # an option of methods that spread their batches, as is the pattern
        foreground = self.pseudo_foreground_probability
        unlabeled = UnlabeledLoader(dataset, labeled, self.label_manager, self.VIEWS, bins, foreground)
        if self.seed is not None:
            reproducibility.fix_timed_choices(labeled.transforms)
        self.streams = labeled, unlabeled
        num_workers = get_allowed_n_proc_DA()
        num_validation = max(1, num_workers // 2) if num_workers else 0  # as nnU-Net
        return self._start_streams(), self._start_loader(validation, "validation", num_validation)

    def _unlabeled_images(self, pool: UnlabeledPool) -> UnlabeledDataset:
        return self._images_in(pool.folders)

    def _images_in(self, folders: dict[str, Path]) -> UnlabeledDataset:
        """Return the images of cases, by the folder of each; one that is damaged is not read."""
        files = {one.folder: one for one in (self._preprocessing.files, self._labeled_files)}
        return UnlabeledDataset(folders, self._preprocessing.preprocessed, files)

    def _start_streams(self) -> TwoStreamLoader:
        """Start both training streams; in a labeled-only epoch the labeled one alone, with all of nnU-Net's workers."""
        (labeled, unlabeled), num_workers = self.streams, get_allowed_n_proc_DA()
        num_labeled, num_unlabeled = (num_workers, 0) if self.epoch_is_labeled_only else divide_workers(num_workers)
        # A run that ends closes what stands here, also when the second one cannot start.
        self.dataloader_train = loader = TwoStreamLoader(self._start_loader(labeled, "labeled", num_labeled), None)
        if not self.epoch_is_labeled_only:
            loader.unlabeled = self._start_loader(unlabeled, "unlabeled", num_unlabeled)
        return loader

    def _restart_unlabeled(self) -> None:
        """Start the unlabeled stream anew, if it runs: its workers have copies of what it was."""
        loader = self.dataloader_train
        if loader.unlabeled is not None:
            close_loader(loader.unlabeled)
            num_workers = divide_workers(get_allowed_n_proc_DA())[1]
            loader.unlabeled = self._start_loader(self.streams[1], "unlabeled", num_workers)

    def on_train_epoch_start(self) -> None:
        """Start an epoch's steps; where a labeled-only warm-up begins or ends, with the streams that it takes."""
        super().on_train_epoch_start()
        if (self.dataloader_train.unlabeled is None) != self.epoch_is_labeled_only:
            what = (
                "begins: no unlabeled images are loaded"
                if self.epoch_is_labeled_only
                else "ends in this epoch: unlabeled images are loaded from here"
            )
            self.print_to_log_file(f"The labeled-only warm-up {what}")
            close_loader(self.dataloader_train)
            self.dataloader_train = self._start_streams()

    def _loaders_of_nnunet(self) -> tuple[Any, Any]:
        """Return nnU-Net's loaders, bare: with 0 workers it starts no process, so that ours can be seeded."""
        workers = os.environ.get("nnUNet_n_proc_DA")
        os.environ["nnUNet_n_proc_DA"] = "0"
        try:
            labeled, validation = super().get_dataloaders()
        finally:
            if workers is None:
                del os.environ["nnUNet_n_proc_DA"]
            else:
                os.environ["nnUNet_n_proc_DA"] = workers
        return labeled_loader(labeled.data_loader), validation.data_loader

    def _start_loader(self, loader: Any, stream: str, num_workers: int) -> Any:  # noqa: ANN401 - nnU-Net's loaders
        seed = np.random.SeedSequence().entropy if self.seed is None else self.seed
        seeds = [
            reproducibility.derive_seed(seed, STREAMS[stream], self.local_rank, worker, self.current_epoch)
            for worker in range(num_workers)
        ]
        return start_loader(loader, seeds, self.device.type == "cuda", self.worker_seconds, stream == "validation")

    @cached_property
    def _preprocessing(self) -> UnlabeledPreprocessing:
        """Return that of the unlabeled images."""
        return self._preprocessing_for(self.configuration_name)

    def _preprocessing_for(self, configuration: str) -> UnlabeledPreprocessing:
        plans, folder = self.plans_manager, Path(self.preprocessed_dataset_folder_base)
        return UnlabeledPreprocessing(
            plans.plans,
            configuration,
            self.dataset_json,
            Path(nnUNet_raw.get() or "$nnUNet_raw", plans.dataset_name, "imagesUn"),
            folder_of(folder, plans.get_configuration(configuration).data_identifier),
        )

    def _collect_pool(self) -> UnlabeledPool:
        (train, validation), preprocessing = self.do_split(), self._preprocessing
        splits_file = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
        pool = collect_pool(
            preprocessing,
            Path(self.preprocessed_dataset_folder),
            list(train),
            list(validation),
            unlabeled_cases_of_fold(splits_file, self.fold),
            lambda outdated: self._preprocess(preprocessing, outdated),
        )
        options = {name: getattr(self, name) for name in allowed_options(type(self), nnUNetTrainer)}
        first_weights = FirstWeights.of({} if self.was_resumed else options, sys.argv, splits_file)
        before = cases_before(self._split_digests) if self.was_resumed else first_weights.learned
        cases = TrainedCases.of(train, validation, [*pool.folders, *pool.left_out], before)
        split = cases.digest
        digests = {"split": split, "train_and_val": cases.train_and_val, CASES: cases.as_plain()}
        self._compare_with_split_before(digests)
        self._say_leaks(cases, first_weights)
        self._split_digests = digests
        self.print_to_log_file(f"Unlabeled cases: {len(pool.folders)}; hash of the split: {split}")
        for case, problem in pool.left_out.items():
            retry = f"After fixing it: {preprocessing.command}"
            self.print_to_log_file(f"WARNING: unlabeled case {case} is left out: {problem}. {retry}")
        if sentence := older_conversion(self.dataset_json):
            self.print_to_log_file(f"WARNING: {sentence}")
        if unused := preprocessing.unused_files():
            self.print_to_log_file(f"WARNING: {unused}")
        if pool.twins:
            self.print_to_log_file(f"WARNING: {twins_warning(pool.twins, self.plans_manager.dataset_name)}")
        return pool

    def _say_leaks(self, cases: TrainedCases, first_weights: FirstWeights) -> None:
        """Warn of what a training sees and should not, refuse what validates or tests it; no voxel is read."""
        name, preprocessed = self.plans_manager.dataset_name, Path(self.preprocessed_dataset_folder_base)
        for warning in first_weights.warnings(cases):
            self.print_to_log_file(f"WARNING: {warning}")
        raw = Path(nnUNet_raw.get() or "$nnUNet_raw", name)
        look = LookAtTraining(raw, preprocessed, self.dataset_json, self.plans_manager.plans_name)
        for line in look.at(self.fold, cases, Path(self.preprocessed_dataset_folder)):
            self.print_to_log_file(line)

    def _compare_with_split_before(self, digests: Mapping[str, Any]) -> None:
        """Refuse to go on with other training or validation cases than the run began with; say it of unlabeled ones."""
        before = self._split_digests
        if before.get("train_and_val", digests["train_and_val"]) != digests["train_and_val"]:
            raise ValueError(
                f"this run began with other training or validation cases than splits_final.json has now for fold "
                f"{self.fold}, and may have learned what validates it: put that file back, or train again without --c"
            )
        if before.get("split", digests["split"]) != digests["split"]:
            self.print_to_log_file("WARNING: the unlabeled cases are others than those that this run began with")

    def _preprocess(self, preprocessing: UnlabeledPreprocessing, outdated: list[str]) -> None:
        if self.is_ddp:  # the other processes would wait for one another until the time-out of their collectives
            raise RuntimeError(
                f"{len(outdated)} unlabeled cases are not preprocessed, which a training in several processes does "
                f"not do: {preprocessing.command}"
            )
        self.print_to_log_file(f"Preprocessing {len(outdated)} unlabeled cases, once: {preprocessing.preprocessed}")
        preprocessing.run(min(default_num_processes, os.cpu_count() or 1), outdated)
