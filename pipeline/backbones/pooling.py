"""Pooling of what a tap emits, at the moment it is recorded: fewer bytes for tasks that need less.

"mean", "std" and "max" run over the tokens of a text (special ones included), the patches of a grid
(CLS included) or the cells of a map; "first" takes the CLS token, "last" a text's last one. Joined
with "+" they stand side by side in one vector: "mean+std" is the statistics pooling of x-vectors
(Snyder et al., ICASSP 2018). "cells=N" averages a map over an even grid of N x N cells. Vectors
stay as they are. Cost: one pass over the states in float32 for each.

Written into exported folders, where live states are pooled as the cached ones were. Pure torch.
b samples of a batch, L tokens (padded), P patches, D wide, maps of C channels.
"""

import re
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

TOKEN_POOLINGS = ("mean", "std", "max", "first", "last")
MAP_POOLINGS = ("mean", "std", "max")
_CELLS = re.compile(r"cells=([1-9]\d{0,3})")


def check_pool(pool: str) -> str:
    """Return `pool`, which must be "none", some of `TOKEN_POOLINGS` joined with "+", or "cells=N".

    Raises:
        ValueError: it is none of them, or names one twice.
    """
    pool = pool.strip()
    parts = pool.split("+")
    known = pool == "none" or pool_cells(pool) is not None or set(parts) <= set(TOKEN_POOLINGS)
    if not known:
        raise ValueError(
            f"pool {pool!r} is not one of none, {', '.join(TOKEN_POOLINGS)}, several of these "
            "joined with + (mean+std), or cells=N with a whole number (cells=7: maps of 7 x 7)"
        )
    if len(set(parts)) < len(parts):
        raise ValueError(f"pool {pool!r} names one twice: give each once")
    return pool


def pool_cells(pool: str) -> int | None:
    """Return N of "cells=N", None for another pooling."""
    found = _CELLS.fullmatch(pool)
    return int(found[1]) if found else None


def pooled_shape(pool: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that an image's (P, D), (C, H, W) or (D,) has after pooling.

    A text is its (L, D) of any L.

    Raises:
        ValueError: states of this shape cannot be pooled so.
    """
    cells = pool_cells(pool)
    if pool == "none" or len(shape) == 1:
        return tuple(shape)
    parts = pool.split("+")
    if len(shape) == 2:
        if cells is not None:
            raise ValueError(f"tokens have no cells: choose one of {', '.join(TOKEN_POOLINGS)}")
        return (shape[1] * len(parts),)
    if cells is not None:
        return (shape[0], min(cells, shape[1]), min(cells, shape[2]))
    if absent := [part for part in parts if part not in MAP_POOLINGS]:
        raise ValueError(
            f"maps have no {absent[0]} token: choose one of {', '.join(MAP_POOLINGS)}, cells=N"
        )
    return (shape[0] * len(parts),)


def pool_states(state: Tensor, pool: str, mask: Tensor | None = None) -> Tensor:
    """Pool states [b, L, D], [b, P, D] or [b, C, H, W]; vectors [b, D] stay as they are.

    Args:
        state: of one tap.
        pool: see `check_pool`; "none" keeps everything.
        mask: [b, L], true at the tokens that count; None if all do.

    Returns:
        [b, D] or [b, C] (K times as wide for K of them joined), or a map for "cells=N": float32;
        "none" keeps the type.
    """
    if pool == "none" or state.dim() == 2:
        return state
    state = state.float()
    cells = pool_cells(pool)
    if cells is not None:
        return _pool_cells(state, cells)
    if state.dim() == 4:
        state = state.flatten(2).transpose(1, 2)
    way = _pool_all if mask is None else partial(_pool_tokens, mask=mask.to(state.device).bool())
    return torch.cat([way(state, part) for part in pool.split("+")], 1)


def _pool_all(state: Tensor, part: str) -> Tensor:
    """Pool [b, P, D] over all of P."""
    if part == "mean":
        return state.mean(1)
    if part == "std":
        return (state - state.mean(1, keepdim=True)).square().mean(1).sqrt()
    if part == "max":
        return state.amax(1)
    return state[:, 0] if part == "first" else state[:, -1]


def _pool_tokens(state: Tensor, part: str, mask: Tensor) -> Tensor:
    """Pool [b, L, D] over the tokens of `mask` [b, L], wherever they lie in a row."""
    if part == "mean":
        return _masked_mean(state, mask)
    if part == "std":
        return _masked_mean((state - _masked_mean(state, mask)[:, None]).square(), mask).sqrt()
    if part == "max":
        return state.masked_fill(~mask[..., None], -torch.inf).amax(1)
    steps = torch.arange(state.shape[1], device=state.device)
    steps = steps if part == "last" else -steps
    place = steps.masked_fill(~mask, -state.shape[1]).argmax(1)  # [b]
    index = place[:, None, None].expand(-1, 1, state.shape[2])
    return state.gather(1, index)[:, 0]


def _masked_mean(state: Tensor, mask: Tensor) -> Tensor:
    return state.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True)


def _pool_cells(state: Tensor, cells: int) -> Tensor:
    """Pool [b, C, H, W] to [b, C, h, w]."""
    size = (min(cells, state.shape[2]), min(cells, state.shape[3]))
    whole = state.shape[2] % size[0] == 0 and state.shape[3] % size[1] == 0
    if whole:  # the same numbers, and a simple operator in traced models
        return F.avg_pool2d(state, (state.shape[2] // size[0], state.shape[3] // size[1]))
    return F.adaptive_avg_pool2d(state, size)
