"""nnU-Net's trainer with a second, unlabeled stream of batches."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import isfile, load_json
from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_ssl.data.loaders import TwoStreamLoader, UnlabeledLoader, close_loader, divide_workers, start_loader
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset
from nnunet_ssl.data.unlabeled_pool import RETRY, UnlabeledPool, collect_pool, split_digest, unlabeled_cases_of_fold
from nnunet_ssl.data.unlabeled_preprocessing import UnlabeledPreprocessing, folder_of
from nnunet_ssl.training import reproducibility

STREAMS = {"labeled": 0, "unlabeled": 1, "validation": 2, "step": 3, "network": 4}  # each draws its own random numbers


class TwoStreamTrainer(nnUNetTrainer):
    """Finds a fold's unlabeled cases, preprocesses what is missing of them, and loads them beside the labeled ones."""

    views: tuple[str, ...] = ("weak", "strong")  # of each unlabeled patch; see nnunet_ssl.data.views
    seed: int | None = None  # None: not reproducible, as nnU-Net

    @property
    def epoch_is_labeled_only(self) -> bool:
        """Whether no step of the epoch takes unlabeled images, which are then not loaded."""
        return False

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split; a fold that the splits file does not have is an error, not a random split."""
        splits_file = os.path.join(self.preprocessed_dataset_folder_base, "splits_final.json")
        folds = len(load_json(splits_file)) if isfile(splits_file) else 5  # nnU-Net makes 5 when there is no file
        if self.fold != "all" and not 0 <= self.fold < folds:
            raise ValueError(f"there is no fold {self.fold}: {splits_file} has the folds 0 to {folds - 1}")
        return super().do_split()

    def get_dataloaders(self) -> tuple[TwoStreamLoader, Any]:
        """Return nnU-Net's loaders, the training one joined by the unlabeled stream."""
        pool = self._collect_pool()
        labeled, validation = self._loaders_of_nnunet()
        unlabeled = UnlabeledLoader(
            UnlabeledDataset(pool.folders, self._folder_of_unlabeled()), labeled, self.label_manager, self.views
        )
        if self.seed is not None:
            reproducibility.fix_timed_choices(labeled.transforms)
        self.streams = labeled, unlabeled
        num_workers = get_allowed_n_proc_DA()
        num_validation = max(1, num_workers // 2) if num_workers else 0  # as nnU-Net
        return self._start_streams(), self._start_loader(validation, "validation", num_validation)

    def _start_streams(self) -> TwoStreamLoader:
        """Start both training streams; in a labeled-only epoch the labeled one alone, with all of nnU-Net's workers."""
        (labeled, unlabeled), num_workers = self.streams, get_allowed_n_proc_DA()
        if self.epoch_is_labeled_only:
            return TwoStreamLoader(self._start_loader(labeled, "labeled", num_workers), None)
        num_labeled, num_unlabeled = divide_workers(num_workers)
        return TwoStreamLoader(
            self._start_loader(labeled, "labeled", num_labeled),
            self._start_loader(unlabeled, "unlabeled", num_unlabeled),
        )

    def on_train_epoch_start(self) -> None:
        """Start an epoch's steps, the first ones that take unlabeled images with the stream of them."""
        super().on_train_epoch_start()
        if self.dataloader_train.unlabeled is None and not self.epoch_is_labeled_only:
            self.print_to_log_file("The labeled-only warm-up ends in this epoch: unlabeled images are loaded from here")
            close_loader(self.dataloader_train)
            self.dataloader_train = self._start_streams()

    def _loaders_of_nnunet(self) -> tuple[Any, Any]:
        """Return nnU-Net's bare loaders: with 0 workers it starts no process, so that ours can be seeded."""
        workers = os.environ.get("nnUNet_n_proc_DA")
        os.environ["nnUNet_n_proc_DA"] = "0"
        try:
            labeled, validation = super().get_dataloaders()
        finally:
            if workers is None:
                del os.environ["nnUNet_n_proc_DA"]
            else:
                os.environ["nnUNet_n_proc_DA"] = workers
        return labeled.data_loader, validation.data_loader

    def _start_loader(self, loader: Any, stream: str, num_workers: int) -> Any:  # noqa: ANN401 - nnU-Net's loaders
        seed = np.random.SeedSequence().entropy if self.seed is None else self.seed
        seeds = [
            reproducibility.derive_seed(seed, STREAMS[stream], self.local_rank, worker, self.current_epoch)
            for worker in range(num_workers)
        ]
        return start_loader(loader, seeds, pin_memory=self.device.type == "cuda")

    def _folder_of_unlabeled(self) -> Path:
        return folder_of(Path(self.preprocessed_dataset_folder_base), self.configuration_manager.data_identifier)

    def _collect_pool(self) -> UnlabeledPool:
        train, validation = self.do_split()
        dataset_folder = Path(self.preprocessed_dataset_folder_base)
        preprocessing = UnlabeledPreprocessing(
            self.plans_manager.plans,
            self.configuration_name,
            self.dataset_json,
            Path(nnUNet_raw.get() or "$nnUNet_raw", self.plans_manager.dataset_name, "imagesUn"),
            self._folder_of_unlabeled(),
        )
        pool = collect_pool(
            preprocessing,
            Path(self.preprocessed_dataset_folder),
            {*train, *validation},
            unlabeled_cases_of_fold(dataset_folder / "splits_final.json", self.fold),
            lambda outdated: self._preprocess(preprocessing, outdated),
        )
        split = split_digest(train, validation, [*pool.folders, *pool.left_out])
        self.print_to_log_file(f"Unlabeled cases: {len(pool.folders)}; hash of the split: {split}")
        for case, problem in pool.left_out.items():
            self.print_to_log_file(f"WARNING: unlabeled case {case} is left out: {problem}. {RETRY}")
        return pool

    def _preprocess(self, preprocessing: UnlabeledPreprocessing, outdated: list[str]) -> None:
        dataset, plans = self.plans_manager.dataset_name, self.plans_manager.plans_name
        if self.is_ddp:  # the other processes would wait for one another until the time-out of their collectives
            raise RuntimeError(
                f"{len(outdated)} unlabeled cases are not preprocessed, which a training in several processes does "
                f"not do: nnunet_ssl preprocess -d {dataset} -c {self.configuration_name} -p {plans}"
            )
        self.print_to_log_file(f"Preprocessing {len(outdated)} unlabeled cases, once: {preprocessing.preprocessed}")
        preprocessing.run(min(default_num_processes, os.cpu_count() or 1), outdated)
