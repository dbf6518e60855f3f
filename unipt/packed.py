"""Packed tokens: the valid tokens of a batch one after another, and where each sample begins.

Legend: B samples, T = all valid tokens, L = longest sample. ``offsets`` is a ``LongTensor [B + 1]``
that starts at 0 and ends at T; sample ``b`` owns rows ``offsets[b]:offsets[b + 1]``.
Price: index arithmetic of O(B + T) integers and at most one copy of the values.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

__all__ = [
    "LengthGroups",
    "check_offsets",
    "group_by_length",
    "invert",
    "lengths_to_offsets",
    "offsets_to_lengths",
    "pack",
    "permute_rows",
    "segment_ids",
    "segment_max",
    "segment_mean",
    "segment_softmax",
    "unpack",
]


class LengthGroups(NamedTuple):
    """A packed batch ordered by length: group g is ``sizes[g][0]`` samples of ``sizes[g][1]``."""

    sizes: tuple[tuple[int, int], ...]
    """(samples G, tokens each L) of every group, shortest first."""
    samples: Tensor
    """Sample numbers in this order, ``[B]``."""
    tokens: Tensor
    """Rows of the packed values in this order, ``[T]``."""


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    """Turn token counts ``[B]`` into offsets ``[B + 1]``."""
    offsets = lengths.new_zeros(lengths.shape[0] + 1, dtype=torch.long)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return offsets


def offsets_to_lengths(offsets: Tensor) -> Tensor:
    """Turn offsets ``[B + 1]`` into token counts ``[B]``."""
    return offsets[1:] - offsets[:-1]


def segment_ids(offsets: Tensor) -> Tensor:
    """Return the sample number of each token, ``[T]``."""
    samples = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(samples, offsets_to_lengths(offsets))


def check_offsets(offsets: Tensor, tokens: int) -> None:
    """Check that offsets describe ``tokens`` rows and that no sample is empty.

    Raises:
        ValueError: if the offsets do not run from 0 to ``tokens`` in rising steps.
    """
    bounds = offsets.tolist()
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != tokens:
        raise ValueError(
            f"offsets run from {bounds[:1]} to {bounds[-1:]} for {tokens} packed tokens; "
            "pass a LongTensor [B + 1] from 0 to the number of tokens (see lengths_to_offsets)"
        )
    if any(end <= begin for begin, end in pairwise(bounds)):
        raise ValueError(
            "offsets hold an empty sample (two equal neighbours); drop samples without tokens"
        )


def group_by_length(offsets: Tensor) -> LengthGroups:
    """Order the samples by length, so that equal lengths become batches without padding.

    Costs one transfer of ``offsets`` to the host and integer work of O(B + T).
    """
    host = offsets.to("cpu")
    lengths = offsets_to_lengths(host)
    samples = torch.argsort(lengths, stable=True)
    values, counts = torch.unique_consecutive(lengths[samples], return_counts=True)
    moved = lengths[samples]
    # row of the batch = row inside the sample + where the sample begins
    shift = host[samples] - (torch.cumsum(moved, 0) - moved)
    tokens = torch.arange(int(host[-1])) + torch.repeat_interleave(shift, moved)
    return LengthGroups(
        sizes=tuple(zip(counts.tolist(), values.tolist(), strict=True)),
        samples=samples.to(offsets.device),
        tokens=tokens.to(offsets.device),
    )


def invert(order: Tensor) -> Tensor:
    """Return the permutation that undoes ``order``."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=order.device)
    return inverse


class _PermuteRows(torch.autograd.Function):
    """index_select by a permutation; the backward gathers too, instead of adding into zeros."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return values.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return grads[0].index_select(0, invert(order)), None


def permute_rows(values: Tensor, order: Tensor) -> Tensor:
    """Reorder the rows of ``values [R, ...]`` by the permutation ``order [R]``."""
    return cast(Tensor, _PermuteRows.apply(values, order))  # type: ignore[no-untyped-call]


def pack(padded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the padding.

    Args:
        padded: ``[..., B, L, D]``.
        mask: ``[B, L]``, true at valid tokens.

    Returns:
        values ``[..., T, D]`` and offsets ``[B + 1]``.
    """
    mask = mask.bool()
    return padded[..., mask, :], lengths_to_offsets(mask.sum(1))


def unpack(values: Tensor, offsets: Tensor, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Bring back the padding, on the right.

    Args:
        values: ``[..., T, D]``.
        offsets: ``[B + 1]``.
        fill: value of the padding.

    Returns:
        padded ``[..., B, L, D]`` and mask ``[B, L]`` (bool).
    """
    lengths = offsets_to_lengths(offsets)
    steps = torch.arange(int(lengths.max()), device=offsets.device)
    mask = steps < lengths[:, None]  # [B, L]
    padded = values.new_full((*values.shape[:-2], *mask.shape, values.shape[-1]), fill)
    padded[..., mask, :] = values
    return padded, mask


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    """Mean over the tokens of each sample, ``[T, D] -> [B, D]``."""
    total = values.new_zeros(offsets.shape[0] - 1, values.shape[-1])
    total = total.index_add(0, segment_ids(offsets), values)
    return total / offsets_to_lengths(offsets)[:, None].to(values.dtype)


def segment_max(values: Tensor, offsets: Tensor) -> Tensor:
    """Largest value of each dimension over the tokens of each sample, ``[T, D] -> [B, D]``."""
    ids = segment_ids(offsets)
    if not torch.compiler.is_compiling():
        return cast(Tensor, _SegmentMax.apply(values, ids, offsets.shape[0] - 1))  # type: ignore[no-untyped-call]
    return _largest(values, ids, offsets.shape[0] - 1)


def _largest(values: Tensor, ids: Tensor, samples: int) -> Tensor:
    low = values.new_full((samples, values.shape[-1]), -torch.inf)
    return low.scatter_reduce(0, ids[:, None].expand_as(values), values, "amax")


class _SegmentMax(torch.autograd.Function):
    """Equal largest values share the gradient, which moves by rows instead of number by number."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ids: Tensor, samples: int) -> Tensor:
        peaks = _largest(values, ids, samples)
        ctx.save_for_backward(values, ids, peaks)
        return peaks

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, ids, peaks = ctx.saved_tensors
        chosen = (values == peaks.index_select(0, ids)).to(values.dtype)  # [T, D]
        count = torch.zeros_like(peaks).index_add_(0, ids, chosen)
        return (grads[0] / count).index_select(0, ids).mul_(chosen), None, None


def segment_softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    """Softmax over the tokens of each sample, ``[T] -> [T]``."""
    ids = segment_ids(offsets)
    peak = segment_max(scores.detach()[:, None], offsets)[ids, 0]
    weights = torch.exp(scores - peak)
    total = weights.new_zeros(offsets.shape[0] - 1).index_add(0, ids, weights)
    return weights / total[ids]
