"""Pooling of what a tap emits, at the moment it is recorded: fewer bytes for tasks that need less.

"mean" and "max" run over the tokens of a text (special ones included), the patches of a grid (CLS
included) or the cells of a map; "first" takes the CLS token, "last" a text's last one; "cells=N"
averages a map over an even grid of N x N cells. Vectors stay as they are. Cost: one pass over the
states in float32.

Written into exported folders, where live states are pooled as the cached ones were. Pure torch.
b samples of a batch, L tokens (padded), P patches, D wide, maps of C channels.
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TOKEN_POOLINGS = ("mean", "first", "last", "max")
MAP_POOLINGS = ("mean", "max", "cells=N")
_CELLS = re.compile(r"cells=([1-9]\d{0,3})")


def check_pool(pool: str) -> str:
    """Return `pool`, which must be "none", one of `TOKEN_POOLINGS`, or "cells=N".

    Raises:
        ValueError: it is none of them.
    """
    pool = pool.strip()
    if pool not in ("none", *TOKEN_POOLINGS) and pool_cells(pool) is None:
        raise ValueError(
            f"pool {pool!r} is not one of none, {', '.join(TOKEN_POOLINGS)}, or cells=N with a "
            "whole number (cells=7: maps of 7 x 7)"
        )
    return pool


def pool_cells(pool: str) -> int | None:
    """Return N of "cells=N", None for another pooling."""
    found = _CELLS.fullmatch(pool)
    return int(found[1]) if found else None


def pooled_shape(pool: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that a picture's (P, D), (C, H, W) or (D,) has after pooling.

    A text is its (L, D) of any L.

    Raises:
        ValueError: states of this shape cannot be pooled so.
    """
    cells = pool_cells(pool)
    if pool == "none" or len(shape) == 1:
        return tuple(shape)
    if len(shape) == 2:
        if cells is not None:
            raise ValueError(f"tokens have no cells: choose one of {', '.join(TOKEN_POOLINGS)}")
        return (shape[1],)
    if cells is not None:
        return (shape[0], min(cells, shape[1]), min(cells, shape[2]))
    if pool not in MAP_POOLINGS:
        raise ValueError(f"maps have no {pool} token: choose one of {', '.join(MAP_POOLINGS)}")
    return (shape[0],)


def pool_states(state: Tensor, pool: str, mask: Tensor | None = None) -> Tensor:
    """Pool states [b, L, D], [b, P, D] or [b, C, H, W]; vectors [b, D] stay as they are.

    Args:
        state: of one tap.
        pool: see `check_pool`; "none" keeps everything.
        mask: [b, L], true at the tokens that count; None if all do.

    Returns:
        [b, D] or [b, C], or a map for "cells=N": float32; "none" keeps the type.
    """
    if pool == "none" or state.dim() == 2:
        return state
    state = state.float()
    if state.dim() == 4:
        return _pool_map(state, pool)
    if mask is None:
        return _pool_all(state, pool)
    return _pool_tokens(state, pool, mask)


def _pool_all(state: Tensor, pool: str) -> Tensor:
    """Pool [b, P, D] over all of P."""
    if pool == "mean":
        return state.mean(1)
    if pool == "max":
        return state.amax(1)
    return state[:, 0] if pool == "first" else state[:, -1]


def _pool_tokens(state: Tensor, pool: str, mask: Tensor) -> Tensor:
    """Pool [b, L, D] over the tokens of `mask`, wherever they lie in a row."""
    valid = mask.to(state.device).bool()
    if pool == "mean":
        total = state.masked_fill(~valid[..., None], 0.0).sum(1)
        return total / valid.sum(1, keepdim=True)
    if pool == "max":
        return state.masked_fill(~valid[..., None], -torch.inf).amax(1)
    steps = torch.arange(state.shape[1], device=state.device)
    steps = steps if pool == "last" else -steps
    place = steps.masked_fill(~valid, -state.shape[1]).argmax(1)  # [b]
    index = place[:, None, None].expand(-1, 1, state.shape[2])
    return state.gather(1, index)[:, 0]


def _pool_map(state: Tensor, pool: str) -> Tensor:
    """Pool [b, C, H, W] to [b, C], or to [b, C, h, w]."""
    cells = pool_cells(pool)
    if cells is None:
        return state.mean((2, 3)) if pool == "mean" else state.amax((2, 3))
    size = (min(cells, state.shape[2]), min(cells, state.shape[3]))
    whole = state.shape[2] % size[0] == 0 and state.shape[3] % size[1] == 0
    if whole:  # the same numbers, and a simple operator in traced models
        return F.avg_pool2d(state, (state.shape[2] // size[0], state.shape[3] // size[1]))
    return F.adaptive_avg_pool2d(state, size)
