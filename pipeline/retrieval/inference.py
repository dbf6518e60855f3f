"""Embeds the captions and items of a split with two towers, in evaluation mode.

m captions, n items, E width, N targets. Each content goes through its tower once, in the order of
the disk. Memory: one batch and the embeddings.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import Cache, JointLoader, Source
from pipeline.retrieval.samples import Ints, LocatedPairs
from pipeline.retrieval.taps import TowerTaps, input_type
from unipt import SideTower, TwoTowers


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of several texts, pictures or clips, in their order."""

    vectors: Tensor
    """[n, E], float32, on the CPU."""
    confidence: NDArray[np.float32]
    """How much each target layer counted for each, [n, N]; rows sum to 1."""


@torch.inference_mode()
def embed(
    tower: SideTower,
    cache: Cache,
    taps: TowerTaps,
    samples: Ints,
    *,
    batch_size: int,
    device: torch.device,
) -> Embedded:
    """Return the embeddings of `samples` [n] of a cache; equal ones are computed once."""
    present, where = np.unique(samples, return_inverse=True)
    order = np.argsort(cache.table.block[present], kind="stable")
    source = Source(cache=cache, samples=present[order], taps=taps.names)
    loader = JointLoader(
        {"it": source}, batch_size=batch_size, seed=0, shuffle=False, device=device
    )
    was_training = tower.training
    tower.eval()
    vectors, confidence = [], []
    for batch in loader.epoch(0):
        given = taps.inputs(batch.parts["it"], device, input_type(tower, torch.float32))
        output = tower(given.anchor, given.targets, offsets=given.offsets, frames=given.frames)
        vectors.append(output.vector.float().cpu())
        confidence.append(output.confidence.float().cpu())
    tower.train(was_training)
    back = torch.from_numpy(np.argsort(order)[where])  # place of each sample in the order read
    return Embedded(torch.cat(vectors)[back], torch.cat(confidence)[back].numpy())


def embed_split(
    model: TwoTowers,
    caches: dict[str, Cache],
    taps: dict[str, TowerTaps],
    located: LocatedPairs,
    *,
    batch_size: int,
    device: torch.device,
) -> tuple[Embedded, Embedded]:
    """Return the embeddings of a split's captions [m, E] and items [n, E], as they are (view 0)."""
    text, media = (
        embed(
            tower,
            caches[name],
            taps[name],
            samples[:, 0],
            batch_size=batch_size,
            device=device,
        )
        for name, tower, samples in (
            ("text", model.text, located.text),
            ("media", model.media, located.media),
        )
    )
    return text, media
