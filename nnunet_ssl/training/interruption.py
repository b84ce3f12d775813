"""SIGTERM and SIGINT in a training: they end it like an error, so that it can save first, and with 128 + signal."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 1.0  # in which a second signal is the same one, passed on by a launcher to its processes


class Interrupted(SystemExit):
    """Ends the process with 128 + signal, as a shell does it, unless somebody stops it on its way.

    Attributes:
        name: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextmanager
def signals_interrupt(is_first_process: bool) -> Iterator[None]:
    """Let the first signal raise `Interrupted` in what is inside, and a later one end the process at once.

    Processes beside the first one, which saves, and processes that are forked in here leave the first signal to it. All
    is as before at the end. A signal that is ignored, as a shell ignores SIGINT for what runs in its background, stays
    ignored; where this is no main thread, nothing is changed.
    """
    owner, came_at = os.getpid(), None

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal came_at
        if os.getpid() != owner:
            return
        now = time.monotonic()
        if came_at is not None and now - came_at >= ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(owner, number)
        elif came_at is None:
            came_at = now
            if is_first_process:
                raise Interrupted(number)

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS} if is_main else {}
    changed = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in changed:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in changed.items():
            signal.signal(number, handler)
