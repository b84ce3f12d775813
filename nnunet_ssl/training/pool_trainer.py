"""nnU-Net's trainer with predictions of all unlabeled cases, at equal distances over the main stage."""

import time
from pathlib import Path

from nnunet_ssl.data.pool_predictions import PoolPredictions, begin_round, open_round, stable_cases
from nnunet_ssl.data.views import LABEL
from nnunet_ssl.training import distributed
from nnunet_ssl.training.resumable_trainer import ResumableTrainer
from nnunet_ssl.training.stages import Stages
from nnunet_ssl.training.whole_pool import WholePool, model_digest, predictor_for

USES = ("pseudo_foreground_probability", "unstable_fraction")  # of predictions


class PoolTrainer(ResumableTrainer):
    """At the beginning of a round the inference network predicts every unlabeled case; what is asked for uses it.

    The main stage is divided into `prediction_rounds` of equal length. A round begins with the epoch that its beginning
    lies in. A method asks for the predicted labels of its patches with "pseudo_label" in VIEWS.
    """

    prediction_rounds = 0  # how often the unlabeled cases are predicted whole; 0: never
    predicts_mirrored = True  # along the axes that the run mirrors, as nnU-Net predicts; false: 4 or 8 times as fast
    pseudo_foreground_probability = 0.0  # of an unlabeled patch, to be centred on predicted foreground
    unstable_fraction = 0.0  # of the unlabeled cases: those that changed most between rounds are left out

    stages: Stages
    _predictions: PoolPredictions | None = None  # of the round that is on

    def _apply_settings(self) -> None:
        """Refuse what uses predictions in a run that has none, and predictions that nothing uses."""
        super()._apply_settings()
        if self.prediction_rounds:
            if LABEL not in self.VIEWS and not any(getattr(self, name) for name in USES):
                uses = " or ".join(USES)
                raise ValueError(f"prediction_rounds predicts all unlabeled cases for nothing: set {uses} too")
            return
        if LABEL in self.VIEWS:
            raise ValueError(
                f"{type(self).__name__} learns from predictions of all unlabeled cases: prediction_rounds is at least 1"
            )
        for name in USES:
            if getattr(self, name):
                raise ValueError(
                    f"{name} uses predictions of all unlabeled cases: set prediction_rounds too, to 3 for example"
                )

    def on_epoch_start(self) -> None:
        """Begin a round, where one is due, before anything of the epoch; go on with the one that is on after --c."""
        begins = self.stages.epochs_of_rounds(self.prediction_rounds, self.num_epochs)
        if self.current_epoch in begins:
            self._save_what_predicts()
            self._predict_pool(goes_on=False)
        elif self._predictions is None and begins and begins[0] < self.current_epoch:
            self._predict_pool(goes_on=True)
        super().on_epoch_start()

    def _save_what_predicts(self) -> None:
        """Let a run that is interrupted while it predicts go on with the same weights: what is done is of these."""
        if self.current_epoch:
            self.current_epoch -= 1  # as nnU-Net in on_train_end: a checkpoint is of the epoch that has ended
            self.save_checkpoint(str(Path(self.output_folder, "checkpoint_latest.pth")))
            self.current_epoch += 1

    def _predict_pool(self, goes_on: bool) -> None:
        """Predict the cases that are not predicted yet, and let the unlabeled stream take them from here."""
        started, name = time.perf_counter(), self.inference_network()
        root = Path(self.output_folder, "pool_predictions")
        with self.networks.in_place(self, name):
            self.set_deep_supervision_enabled(False)
            predictor = predictor_for(self, self.mirror_axes if self.predicts_mirrored else ())
            made_by = self._round
            if not goes_on or open_round(root, self._round) is None:
                made_by = {"epoch": self.current_epoch, "model": model_digest(self.networks[name], predictor)}
            made_by = distributed.of_first_process(dict(made_by))
            if self.local_rank == 0:
                begin_round(root, made_by, self._round)
            distributed.wait_for_all()
            predictions = open_round(root, made_by)
            pool = WholePool(self.streams[1].images, predictor, self.print_to_log_file)
            done = pool.predict(predictions, None if goes_on else open_round(root, self._round))
        self._round = made_by
        self._use(predictions)
        seconds = time.perf_counter() - started
        self.print_to_log_file(f"Whole unlabeled cases predicted by the {name}: {done} in {seconds:.1f} s")

    def _use(self, predictions: PoolPredictions) -> None:
        self._predictions, unlabeled = predictions, self.streams[1]
        changes = {case: predictions.changes(case) for case in unlabeled.images.folders}
        cases = stable_cases(changes, self.unstable_fraction)
        if left_out := sorted(changes.keys() - set(cases)):
            self.print_to_log_file(f"Left out because their predictions change most: {', '.join(left_out)}")
        unlabeled.use_predictions(predictions, cases)
        self._restart_unlabeled()
