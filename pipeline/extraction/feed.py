"""Batches made ready while the model computes: decoding costs as much as a small model.

A few threads prepare the next batches, in order. Memory: one batch of pixels a thread and two more
(16 images of 224 px are 9.6 MB, of 512 px 50 MB). What is not decoded (texts) is made ready where
it is needed; a thread would cost more than that.
"""

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones import Backbone, Encoded
from pipeline.extraction.media import threads
from pipeline.extraction.table import InputTable

Prepared = Mapping[str, Tensor]


class Pass(NamedTuple):
    """One forward pass: its shard and samples, and the model's arguments if they are ready."""

    shard: int
    samples: NDArray[np.int64]
    encoded: Encoded
    prepared: Prepared | None = None

    def states(self, backbone: Backbone, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Run `backbone` and return tap name -> states in `dtype`."""
        if self.prepared is None:
            return backbone.forward(self.encoded, dtype)
        return backbone.forward(self.encoded, dtype, prepared=self.prepared)


def feed(
    backbone: Backbone,
    table: InputTable,
    batches: Iterator[tuple[int, NDArray[np.int64]]],
    workers: int | None = None,
) -> Generator[Pass]:
    """Yield the passes of `batches`, given as (shard, samples), in order; media ready to compute.

    Args:
        backbone: what will compute them.
        table: of the inputs.
        batches: their shards and samples.
        workers: threads that decode media; by default one a core, at most 8.

    Raises:
        PipelineError: a media file failed or changed since the table was built.
    """
    if not backbone.decodes:
        for shard, samples in batches:
            yield Pass(shard, samples, table.encoded.select(samples))
        return

    def ready(shard: int, samples: NDArray[np.int64]) -> Pass:
        encoded = table.encoded.select(samples)
        prepared = backbone.prepare(encoded)
        table.check_unchanged(samples)
        return Pass(shard, samples, encoded, prepared)

    workers = workers or threads()
    pool, ahead = ThreadPoolExecutor(workers, "decode"), workers + 1
    waiting: deque[Future[Pass]] = deque()
    try:
        for shard, samples in batches:
            waiting.append(pool.submit(ready, shard, samples))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
