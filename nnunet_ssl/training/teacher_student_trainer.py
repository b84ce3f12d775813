"""The base of the methods in which a moving average of the student teaches it."""

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssl.building_blocks.teacher import make_teacher, update_teacher
from nnunet_ssl.training import distributed
from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer


class TeacherStudentTrainer(SemiSupervisedTrainer):
    """Adds the teacher: made of the student, averaged after each step, saved, resumed, and by default what predicts."""

    ema_decay = 0.99  # α; Tarvainen & Valpola 2017, while the student learns fast
    predict_with = "teacher"  # or "student": the network that validates, predicts and is saved as the model

    def initialize(self) -> None:
        """Build the student, then its teacher."""
        super().initialize()
        if self.predict_with not in ("teacher", "student"):
            raise ValueError(f"predict_with is teacher or student, got {self.predict_with!r}")
        self._make_teacher()

    def on_train_start(self) -> None:
        """Start with a teacher that equals the student, whose weights may have come from a file meanwhile."""
        super().on_train_start()
        if not self.was_resumed:
            self._make_teacher()

    def _make_teacher(self) -> None:
        self.teacher = make_teacher(distributed.unwrap(self.network))
        self.teacher.decoder.deep_supervision = False
        if self._do_i_compile():
            self.teacher.compile()

    @torch.no_grad()
    def teacher_probabilities(self, image: Tensor) -> Tensor:
        """Return the teacher's probabilities (B, C, *spatial) at full resolution in float32, without gradient."""
        return self.probabilities(self.teacher(image))

    def after_step(self) -> None:
        """Move the teacher towards the student."""
        update_teacher(self.teacher, distributed.unwrap(self.network), self.ema_decay, self.optimizer_steps - 1)

    def stateful_parts(self) -> dict[str, Any]:
        """Return the student and the teacher."""
        return {**super().stateful_parts(), "teacher": self.teacher}

    @property
    def name_of_inference_network(self) -> str:
        """Teacher, or student if so asked."""
        return self.predict_with

    def network_for_inference(self) -> nn.Module:
        """Return the teacher, or the student if so asked."""
        return self.teacher if self.predict_with == "teacher" else self.network

    def other_networks(self) -> dict[str, nn.Module]:
        """Return the one that does not predict."""
        return {"student": self.network} if self.predict_with == "teacher" else {"teacher": self.teacher}
