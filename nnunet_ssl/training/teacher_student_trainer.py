"""The base of the methods in which the student learns from its moving average."""

from nnunet_ssl.training.semi_supervised_trainer import SemiSupervisedTrainer


class TeacherStudentTrainer(SemiSupervisedTrainer):
    """Adds the teacher: made of the student, averaged after each step, saved, resumed, and by default what predicts."""

    FIRST_NETWORK = "student"

    ema_decay = 0.99  # α; Tarvainen & Valpola 2017, while the student learns fast
    predict_with = "teacher"  # or "student": the network that validates, predicts and is saved as the model

    def check_settings(self) -> None:
        """Refuse another network to predict with."""
        super().check_settings()
        if self.predict_with not in ("teacher", "student"):
            raise ValueError(f"predict_with is teacher or student, got {self.predict_with!r}")

    def build_teachers(self) -> dict[str, str]:
        """Return the teacher of the student."""
        return {"teacher": "student"}

    def inference_network(self) -> str:
        """Return teacher, or student if so asked."""
        return self.predict_with
