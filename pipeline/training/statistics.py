"""Input statistics: mean and deviation of each feature over every training input, as it is.

Cost: one pass over the distinct training inputs of a tower. Sums are kept in float64, tap by tap,
so the result depends on no batch size by more than rounding.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from cache import Loader, Source
from pipeline.data import Ints
from pipeline.systems import Setup, Sides
from pipeline.systems.kernel import place, samples_key
from pipeline.systems.states import tower_states
from unipt import ConvSideNetwork, SideModel
from unipt.towers import to_tokens

__all__ = ["set_statistics"]

CACHED_ROWS = 256
"""Tokens whose float64 copies stay in the processor's cache."""
BATCH = 64
Moments = list[tuple[Tensor, Tensor]]
"""Mean and deviation of each target and of the anchor, [D] each."""


def set_statistics(model: SideModel, setup: Setup) -> None:
    """Give the side towers that standardise their inputs the statistics of the training inputs."""
    for sides in setup.system.sides(model):
        takers = sides.side.standardizers()
        if not takers:
            continue
        cells = isinstance(sides.side.side, ConvSideNetwork)
        for take, (mean, deviation) in zip(takers, _moments(sides, setup, cells), strict=True):
            take(mean, deviation)


def _moments(sides: Sides, setup: Setup, cells: bool) -> Moments:
    samples = [np.unique(setup.splits["train"].clean[name]) for name in sides.towers]
    found = np.unique(np.concatenate(samples)).astype(np.int64)
    key = ("statistics", cells, *place(setup, sides.towers[0]), samples_key(found))
    return setup.memo.get(
        key,
        lambda: _measured(sides.towers[0], setup, found, cells),
        lambda moments: sum(a.nbytes + b.nbytes for a, b in moments),
    )


def _measured(tower: str, setup: Setup, samples: Ints, cells: bool) -> Moments:
    cache, taps = setup.caches[tower], setup.taps[tower]
    order = np.argsort(cache.table.block[samples], kind="stable")
    source = Source(cache=cache, samples=samples[order], taps=[tap.name for tap in taps.read])
    loader = Loader({tower: source}, batch_size=BATCH, seed=0, shuffle=False)
    total: list[tuple[int, Tensor, Tensor]] = []
    for batch in loader.epoch(0):
        states = tower_states(batch.parts[tower], taps, torch.device("cpu"))
        anchor = states.states[taps.anchor.name]
        targets = [states.states[tap.name] for tap in taps.targets]
        if anchor.dim() == 4 and not cells:
            anchor, targets = to_tokens(anchor, targets)
        sums = [_sums(state) for state in (*targets, anchor)]
        total = [_added(a, b) for a, b in zip(total, sums, strict=True)] if total else sums
    moments = []
    for count, first, second in total:
        mean = first / count
        deviation = (second / count - mean.square()).clamp_min(0).sqrt()
        moments.append((mean.float(), deviation.float()))
    return moments


def _added(
    before: tuple[int, Tensor, Tensor], new: tuple[int, Tensor, Tensor]
) -> tuple[int, Tensor, Tensor]:
    return before[0] + new[0], before[1] + new[1], before[2] + new[2]


def _sums(states: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return rows, sums and sums of squares of the features of ``[..., D]`` or ``[B, C, H, W]``.

    In float64, [D] each; of a map each channel's cells are summed in float32, where they lie.
    """
    if states.dim() == 4:
        cells = states.flatten(2).float()  # [B, C, H W]
        first, root = cells.sum(2), torch.linalg.vector_norm(cells, dim=2)  # [B, C]
        rows = cells.shape[0] * cells.shape[2]
        return rows, first.sum(0, dtype=torch.float64), root.double().square().sum(0)
    flat = states.flatten(0, -2)  # [rows, D]
    first = torch.zeros(flat.shape[1], dtype=torch.float64)
    second = torch.zeros_like(first)
    for part in _parts(flat):
        first += part.sum(0)
        second += part.square().sum(0)
    return len(flat), first, second


def _parts(rows: Tensor) -> Iterable[Tensor]:
    return (part.double() for part in torch.split(rows, CACHED_ROWS))
