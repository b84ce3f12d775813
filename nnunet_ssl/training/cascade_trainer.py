"""nnU-Net's cascades: what the first stage segments, at low resolution, is more channels of the second one's images.

nnU-Net writes the segmentations of labeled cases, each of them by the training that it validates. Those of unlabeled
cases are made here by the first stage of the same trainer and fold.
"""

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from nnunet_ssl.data.labeled_cases import labeled_files
from nnunet_ssl.data.pool_index import read_stamps
from nnunet_ssl.data.pool_predictions import PoolPredictions, begin_round, open_round
from nnunet_ssl.data.preprocessed_images import UnlabeledDataset, image_file, open_image
from nnunet_ssl.data.previous_stage import PreviousStage
from nnunet_ssl.data.raw_files import some
from nnunet_ssl.data.unlabeled_pool import UnlabeledPool
from nnunet_ssl.training import distributed, run_lock
from nnunet_ssl.training.checkpoints import load_model
from nnunet_ssl.training.pool_trainer import PoolTrainer
from nnunet_ssl.training.whole_pool import PoolForNextStage, model_digest, predictor_of

UNLABELED = "unlabeled_for_next_stage"  # a folder of the first stage's run; nnU-Net's own is predicted_next_stage


class CascadeTrainer(PoolTrainer):
    """Gives the second stage of a cascade what the first one has segmented, and has the first one segment it."""

    _pool: UnlabeledPool | None = None  # once it is known

    def look_for_first_stage_beside(self, model: Path) -> None:
        """Look beside a model of this configuration, instead of beside the folder that this trainer writes to."""
        if self.is_cascaded:
            folder = f"{model.name.rpartition('__')[0]}__{self.configuration_manager.previous_stage_name}"
            segmentations = model.with_name(folder) / "predicted_next_stage" / self.configuration_name
            self.folder_with_segs_from_previous_stage = str(segmentations)

    def _previous_stage(self) -> PreviousStage:  # no property: nnU-Net's debug.json reads all of them
        name, segmentations = self.configuration_manager.previous_stage_name, self.folder_with_segs_from_previous_stage
        return self._stage(name, Path(segmentations))

    def _stage(self, configuration: str, segmentations: Path) -> PreviousStage:
        plans = self.plans_manager
        return PreviousStage(plans.dataset_name, type(self).__name__, plans.plans_name, configuration, segmentations)

    def _refuse_unfinished(self, cases: list[str] | set[str]) -> None:
        """Notice, before anything is made, a labeled case that is not preprocessed, or not segmented as is needed."""
        super()._refuse_unfinished(cases)
        if self.is_cascaded:
            splits = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
            self._previous_stage().refuse_missing(cases, Path(self.preprocessed_dataset_folder), splits, self.fold)

    def _unlabeled_images(self, pool: UnlabeledPool) -> UnlabeledDataset:
        """Return the images of a pool; of a cascade's second stage with the segmentations of the first."""
        self._pool, stage = pool, self._previous_stage() if self.is_cascaded else None
        if stage is not None:
            stage.refuse_untrained(self.fold)
            pool = self._usable_for(stage.configuration, pool)
        images = super()._unlabeled_images(pool)
        if stage is not None:
            is_first, folder = self.local_rank == 0, stage.run_folder(self.fold)
            of_first_stage = self._images_for(stage.configuration, pool)
            with run_lock.locked(folder, self.print_to_log_file) if is_first else nullcontext():
                images.previous_stage = self._segment(stage, of_first_stage, self.configuration_name, images)
        return images

    def segment_for_next_stages(self) -> None:
        """Segment the unlabeled cases for each second stage that the plans have, after a training in this process.

        What is not there, because this was interrupted for example, a training of the second stage makes.
        """
        pool, is_trained = self._pool, Path(self.output_folder, "checkpoint_final.pth").is_file()
        for name in self.configuration_manager.next_stage_names or ():
            if pool is None or not is_trained or (self.is_ddp and self._outdated_for(name, pool)):
                self.print_to_log_file(f"A training of {name} will segment the unlabeled cases, at its beginning")
                continue
            stage = self._stage(self.configuration_name, Path(self.output_folder_base, "predicted_next_stage", name))
            with self._alone_and_interruptible():
                usable = self._usable_for(name, pool)
                self._segment(stage, super()._unlabeled_images(usable), name, self._images_for(name, usable))

    def _segment(
        self, stage: PreviousStage, images: UnlabeledDataset, next_stage: str, next_images: UnlabeledDataset
    ) -> PoolPredictions:
        """Let a first stage's model segment what it has not yet, and return all that it has segmented.

        Args:
            stage: the first one.
            images: as it takes them.
            next_stage: configuration of the second one.
            next_images: as that takes them.

        Raises:
            ValueError: its model is of other plans.
        """
        started, root = time.perf_counter(), stage.run_folder(self.fold) / UNLABELED / next_stage
        predictor, made_by = self._model_of(stage)
        shapes = {case: open_image(place, case).shape[1:] for case, place in next_images.folders.items()}
        patch_size = self.plans_manager.get_configuration(next_stage).patch_size
        pool = PoolForNextStage(images, predictor, self.print_to_log_file, shapes, patch_size)
        if self.local_rank == 0:
            begin_round(root, made_by, {})
        distributed.wait_for_all()
        segmented = open_round(root, made_by)
        done = pool.predict(segmented, None)
        seconds = time.perf_counter() - started
        what = f"Unlabeled cases segmented by {stage.configuration} for {next_stage}: {done} of {len(shapes)}"
        self.print_to_log_file(f"{what} in {seconds:.1f} s; all are in {segmented.folder}")
        return segmented

    def _model_of(self, stage: PreviousStage) -> tuple[nnUNetPredictor, dict[str, Any]]:
        """Return the model of a first stage, and what its segmentations are known by: epochs, digest of the weights."""
        file, plans = stage.final_checkpoint(self.fold), self.plans_manager
        checkpoint = load_model(file)
        configuration = plans.get_configuration(stage.configuration)
        channels = determine_num_input_channels(plans, configuration, self.dataset_json)
        heads = self.label_manager.num_segmentation_heads
        network = self.build_network_architecture(plans, configuration, channels, heads, False)
        try:
            network.load_state_dict(checkpoint["network_weights"])
        except RuntimeError as error:
            raise ValueError(
                f"{file} has another network than {stage.configuration} of {plans.plans_name} has now: train it again"
            ) from error
        axes = checkpoint.get("inference_allowed_mirroring_axes") or ()
        predictor = predictor_of(self, network, configuration, axes)
        return predictor, {"epoch": checkpoint.get("current_epoch", 0), "model": model_digest(network, predictor)}

    def _usable_for(self, configuration: str, pool: UnlabeledPool) -> UnlabeledPool:
        """Return a pool without what cannot be preprocessed for a configuration; what is not there yet is made.

        Raises:
            ValueError: nothing can.
        """
        preprocessing, own = self._preprocessing_for(configuration), self._preprocessing.preprocessed
        if outdated := self._outdated_for(configuration, pool):
            self._preprocess(preprocessing, outdated)
        stamps = read_stamps(preprocessing.preprocessed)
        from_images = [case for case, folder in pool.folders.items() if folder == own and case in stamps]
        problems = {case: problem for case in from_images if (problem := stamps[case].problem)}
        for case, problem in problems.items():
            self.print_to_log_file(
                f"WARNING: unlabeled case {case} is left out of the cascade: {configuration}: {problem}. After fixing "
                f"it: {preprocessing.command}"
            )
        folders = {case: folder for case, folder in pool.folders.items() if case not in problems}
        if not folders:
            raise ValueError(f"none of the {len(problems)} unlabeled cases can be used for {configuration}: see above")
        return replace(pool, folders=folders, left_out=pool.left_out | problems)

    def _images_for(self, configuration: str, pool: UnlabeledPool) -> UnlabeledDataset:
        """Return the images of a pool as they are for any configuration, for which they are preprocessed.

        Raises:
            ValueError: a case is not.
        """
        preprocessing, plans = self._preprocessing_for(configuration), self.plans_manager
        folder = Path(self.preprocessed_dataset_folder_base, plans.get_configuration(configuration).data_identifier)
        labeled = labeled_files(folder, plans.dataset_name, plans.plans_name, configuration)
        unlabeled, own = preprocessing.files, self._preprocessing.preprocessed
        folders = {case: (unlabeled if one == own else labeled).folder for case, one in pool.folders.items()}
        for files in (unlabeled, labeled):
            cases = [case for case, one in folders.items() if one == files.folder and image_file(one, case) is None]
            if cases:
                raise ValueError(
                    f"unlabeled cases are not preprocessed for {configuration}: {some(cases)}. {files.remedy}"
                )
        return UnlabeledDataset(folders, unlabeled.folder, {one.folder: one for one in (unlabeled, labeled)})

    def _outdated_for(self, configuration: str, pool: UnlabeledPool) -> list[str]:
        """Return the cases of imagesUn that are to be preprocessed for a configuration."""
        preprocessing, own = self._preprocessing_for(configuration), self._preprocessing.preprocessed
        cases = [case for case, folder in pool.folders.items() if folder == own]
        return preprocessing.outdated(cases) if preprocessing.images.is_dir() else []
