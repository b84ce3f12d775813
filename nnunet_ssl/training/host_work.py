"""Work of the host while the device goes on: functions of numpy arrays that run in a thread beside the step."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

Function = Callable[..., Any]
Record = Callable[[dict[str, float]], None]


class Pending:
    """What a function will have returned."""

    def __init__(self, future: Future, device: torch.device, record: Record) -> None:
        self._future = future
        self._device = device
        self._record = record

    def result(self) -> Any:  # noqa: ANN401 - whatever the function returns
        """Wait until the function has ended, and return what it returned; to be called once.

        An array comes as a tensor on the device, for which nothing waits, also in a tuple or a list; all else comes as
        it is. Recorded are the seconds that the function took, and those of them that were waited for here. A device
        that is behind, and has not come to the tensors yet, does not count: it goes on meanwhile.

        Raises:
            BaseException: what the function raised.
        """
        asked = time.perf_counter()
        returned, began, ended = self._future.result()
        waited = max(0.0, ended - max(asked, began))
        self._record({"host/seconds_waiting": waited, "host/seconds_working": ended - began})
        return _on_device(returned, self._device)


class HostWork:
    """Runs functions one after the other in one thread, which starts with the first of them and ends with `close`."""

    def __init__(self, device: torch.device, record: Record) -> None:
        """Start with no thread.

        Args:
            device: of the tensors.
            record: adds seconds to those of the step, by name.
        """
        self._device = device
        self._record = record
        self._thread: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None

    def start(self, function: Function, *tensors: Tensor) -> Pending:
        """Copy tensors to the host, run a function of them there, and return without waiting for either."""
        arrays, copied = self._copies_on_host(tensors)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="host_work")
        return Pending(self._thread.submit(_run, function, arrays, copied), self._device, self._record)

    def close(self) -> None:
        """End the thread after the function that runs; those that have not begun never do."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def _copies_on_host(self, tensors: Sequence[Tensor]) -> tuple[list[np.ndarray], Callable[[], None] | None]:
        """Return arrays, and what waits until they are filled: None where they are already.

        The device copies the tensors first, which later changes in place then do not reach; a stream of its own brings
        the copies to the host, so that the next passes do not wait for the slow part.
        """
        copies = [tensor.detach().clone() for tensor in tensors]
        if self._device.type != "cuda":
            return [copy.cpu().numpy() for copy in copies], None
        self._stream = self._stream or torch.cuda.Stream(self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        copied = torch.cuda.Event(blocking=True)  # the thread that waits leaves the processor to the others
        with torch.cuda.stream(self._stream):
            arrays = [copy.to("cpu", non_blocking=True).numpy() for copy in copies]  # pinned, by torch
            copied.record()
        for copy in copies:
            if copy.is_cuda:
                copy.record_stream(self._stream)  # its memory is not given away before it has been read

        def wait() -> None:
            with torch.cuda.device(self._device):  # a new thread is on the first device, where another process may be
                copied.synchronize()

        return arrays, wait


def _run(function: Function, arrays: list[np.ndarray], copied: Callable[[], None] | None) -> tuple[Any, float, float]:
    """Return in the thread what a function makes of arrays, and when it began and ended."""
    if copied is not None:
        copied()
    began = time.perf_counter()
    return function(*arrays), began, time.perf_counter()


def _on_device(returned: Any, device: torch.device) -> Any:  # noqa: ANN401 - whatever a function returns
    if type(returned) in (tuple, list):
        return type(returned)(_on_device(one, device) for one in returned)
    if not isinstance(returned, np.ndarray):
        return returned
    tensor = torch.from_numpy(np.array(returned))  # of its own memory, in torch's order
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
