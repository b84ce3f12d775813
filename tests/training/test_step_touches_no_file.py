"""A step opens, writes and looks at no file: images are read by the processes that load them."""

import sys
import threading

from nnunet_ssl.data.loaders import close_loader
from nnunet_ssl.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from tests.conftest import make_trainer

OF_FILES = ("open", "os.", "shutil.", "tempfile.")


class Listener:
    """Notes what Python's audit events say of files in this thread while it listens; a hook stays to the end."""

    def __init__(self) -> None:
        self.listens, self.events, self.thread = False, [], threading.get_ident()
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        if self.listens and event.startswith(OF_FILES) and threading.get_ident() == self.thread:
            self.events.append((event, arguments))


def test_steps_touch_no_file(tiny_dataset, monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = make_trainer(tiny_dataset(), nnUNetTrainerMeanTeacher, num_iterations_per_epoch=60, seed=1)
    trainer.initialize()
    trainer.on_train_start()
    listener = Listener()
    try:
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        trainer.train_step(next(trainer.dataloader_train))  # the first one, at which the processes start
        listener.listens = True
        for _ in range(59):
            trainer.train_step(next(trainer.dataloader_train))
        listener.listens = False
        assert listener.events == []
        listener.listens = True
        (tmp_path / "file").write_text("")
        assert listener.events, "it hears"
        listener.listens = False
    finally:
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            close_loader(loader)
