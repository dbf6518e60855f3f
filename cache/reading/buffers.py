"""What a minibatch is made with: the device it goes to, memory for its rows, threads that read.

Memory that a batch was made in is taken again once its last tensor is gone, whoever holds it and
under whatever view: a batch is its holder's alone for as long as it is held, and may be kept or
written to. Taking pages again instead of asking for new ones makes gathering 2-4 times as fast.
Costs, beside the batches that are alive, at most `keep` buffers of the largest batch.
"""

import math
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait

import numpy as np
import torch
from torch import Tensor

SHARES = 4
"""Parts of the work of several threads: more than threads on most machines, so none waits long."""
_SMALL = 2**16
"""Buffers below so many bytes are not worth keeping."""


def large_pages(nbytes: int) -> Tensor:
    """Return uninitialised host memory, uint8 [nbytes].

    Numpy asks the system for large pages; touching them first takes a quarter of the time.
    """
    return torch.from_numpy(np.empty(nbytes, np.uint8))


class BatchBuffers:
    """Makes room for the batches of one epoch of one stack.

    Args:
        most_rows: rows of the largest batch.
        keep: buffers of past batches to hold on to.
        device: of the batches; None for host memory.
        readers: threads that read blocks beside the caller's; None for that alone.
    """

    def __init__(
        self,
        *,
        most_rows: int = 0,
        keep: int = 0,
        device: torch.device | None = None,
        readers: Executor | None = None,
    ) -> None:
        self.device = device
        self._readers = readers
        self._most_rows, self._keep = most_rows, keep
        self._free: dict[int, deque[Tensor]] = defaultdict(deque)

    @property
    def on_host(self) -> bool:
        """Whether batches stay in host memory."""
        return self.device is None or self.device.type == "cpu"

    @property
    def shares(self) -> int:
        """Parts that work is best cut in."""
        return 1 if self._readers is None else SHARES

    def room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor [n_taps, rows, ...] in host memory, pinned for CUDA."""
        if self.device is not None and self.device.type == "cuda":
            return torch.empty(shape, dtype=dtype, pin_memory=True)  # torch keeps and reuses these
        size = math.prod(shape) * dtype.itemsize
        if not self._keep or size < _SMALL:
            return torch.empty(shape, dtype=dtype)
        most = size // shape[1] * max(shape[1], self._most_rows)
        free = self._free[most]
        try:
            raw = free.pop()
        except IndexError:
            raw = large_pages(most)
        lent = raw.numpy()[:size]
        result = torch.from_numpy(lent).view(dtype).view(shape)
        weakref.finalize(lent, _give_back, free, raw, self._keep)  # torch holds `lent` until then
        return result

    def floats(self, shape: tuple[int, ...]) -> Tensor:
        """Return an uninitialised float32 tensor [n_taps, rows, ...] where batches are wanted."""
        if self.on_host:
            return self.room(shape, torch.float32)
        return torch.empty(shape, device=self.device)

    def run(self, jobs: Sequence[Callable[[], None]], readers: Executor | None = None) -> None:
        """Do all jobs, here and in the threads of `readers`; all have ended if one raises."""
        readers = readers or self._readers
        if readers is None or len(jobs) < 2:
            for job in jobs:
                job()
            return
        futures = [readers.submit(job) for job in jobs[1:]]
        try:
            jobs[0]()
            for job, future in zip(reversed(jobs), reversed(futures), strict=False):
                if future.cancel():  # no thread has come to it yet
                    job()
        finally:
            wait(futures)
        for future in futures:
            if not future.cancelled():
                future.result()


def _give_back(free: deque[Tensor], raw: Tensor, keep: int) -> None:
    """Keep a buffer for the next batch; called when the last tensor in it is gone."""
    if len(free) < keep:
        free.append(raw)
