"""From token features to one vector: plain token poolings and the generalized pooling operator.

Legend: B samples, L tokens (padded), T valid tokens (packed), E features.
Price: a few passes over the features; GPO adds a sort of each feature column and a GRU over L
positions of width 32, run once for each length in the batch.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .packed import segment_max, segment_mean, segment_softmax, unpack

__all__ = ["GeneralizedPooling", "TokenPooling", "TokenPoolingKind"]

TokenPoolingKind = Literal["mean", "first", "last", "max", "meanmax", "attention"]


class TokenPooling(nn.Module):
    """Pool the valid tokens of each sample.

    Args:
        width: E.
        kind: "mean", "max", "meanmax" (both, 2 E wide), "first" or "last" valid token, or
            "attention" (a learned softmax weight per token).

    Raises:
        ValueError: if the kind is unknown.
    """

    def __init__(self, width: int, *, kind: TokenPoolingKind = "mean") -> None:
        super().__init__()
        if kind not in get_args(TokenPoolingKind):
            raise ValueError(f"pooling={kind!r}; choose one of {get_args(TokenPoolingKind)}")
        self.kind = kind
        self.out_width = 2 * width if kind == "meanmax" else width
        self.score = nn.Linear(width, 1, bias=False) if kind == "attention" else None

    def forward(
        self, features: Tensor, mask: Tensor | None = None, offsets: Tensor | None = None
    ) -> Tensor:
        """Pool ``[B, L, E]`` with mask ``[B, L]``, or ``[T, E]`` with offsets ``[B + 1]``.

        Returns:
            ``[B, out_width]``.
        """
        if offsets is not None:
            scores = None if self.score is None else self.score(features)[:, 0]
            return self.pool_packed(features, offsets, scores)
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return self._padded(features, mask.bool())

    def pool_packed(self, features: Tensor, offsets: Tensor, scores: Tensor | None) -> Tensor:
        """Pool ``[T, E]`` with offsets, and scores ``[T]`` for "attention"."""
        if self.kind == "first":
            return features[offsets[:-1]]
        if self.kind == "last":
            return features[offsets[1:] - 1]
        if scores is not None:
            weights = segment_softmax(scores, offsets)  # [T]
            lengths = (offsets[1:] - offsets[:-1])[:, None].to(features.dtype)
            return segment_mean(features * weights[:, None], offsets) * lengths
        parts = []
        if "mean" in self.kind:
            parts.append(segment_mean(features, offsets))
        if "max" in self.kind:
            parts.append(segment_max(features, offsets))
        return torch.cat(parts, -1)

    def _padded(self, features: Tensor, mask: Tensor) -> Tensor:
        valid = mask[..., None]  # [B, L, 1]
        if self.kind in ("first", "last"):
            steps = mask.to(torch.long).cumsum(1)  # 1 at the first valid token
            wanted = torch.ones_like(steps[:, -1:]) if self.kind == "first" else steps[:, -1:]
            chosen = mask & (steps == wanted)  # [B, L], one per row
            return torch.where(chosen[..., None], features, 0.0).sum(1)
        if self.score is not None:
            scores = self.score(features).masked_fill(~valid, -torch.inf)
            weights = torch.softmax(scores, 1)
            return (torch.where(valid, features, 0.0) * weights).sum(1)
        parts = []
        if "mean" in self.kind:
            total = torch.where(valid, features, 0.0).sum(1)
            parts.append(total / valid.sum(1).to(features.dtype))
        if "max" in self.kind:
            parts.append(features.masked_fill(~valid, -torch.inf).amax(1))
        return torch.cat(parts, -1)


class GeneralizedPooling(nn.Module):
    """The generalized pooling operator of VSE-infinity (arXiv 2011.04305).

    A bi-GRU over sinusoidal positions gives one weight per rank; each feature dimension, sorted in
    descending order over the valid tokens, is summed with these weights.

    Args:
        position_width: width of the sinusoidal positions.
        hidden_width: width of the GRU.
        temperature: of the softmax over ranks.
    """

    def __init__(
        self, *, position_width: int = 32, hidden_width: int = 32, temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.position_width, self.temperature = position_width, temperature
        self.gru = nn.GRU(position_width, hidden_width, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(hidden_width, 1, bias=False)
        self.table: Tensor | None
        self.register_buffer("table", None, persistent=False)

    def freeze(self, longest: int) -> None:
        """Keep the weights of every length up to `longest` in a table, ``[longest, longest + 1]``.

        Afterwards the GRU is not run any more and no gradient reaches it; `torch.export` traces
        the pooling with dynamic batch and length.
        """
        self.table = None
        with torch.no_grad():
            lengths = torch.arange(1, longest + 1, device=self.linear.weight.device)
            self.table = self.weights(lengths, longest + 1)  # wider: no length is "all columns"

    def forward(
        self, features: Tensor, mask: Tensor | None = None, offsets: Tensor | None = None
    ) -> Tensor:
        """Pool ``[B, L, E]`` with mask ``[B, L]``, or ``[T, E]`` with offsets, to ``[B, E]``."""
        if offsets is not None:
            features, mask = unpack(features, offsets)
        if mask is None:  # one length, so one row of weights
            weights = self.row(features.shape[1])  # [1, L]
            ranked = features.sort(1, descending=True).values  # [B, L, E]
            return torch.einsum("l,ble->be", weights[0], ranked)
        ranked = features.masked_fill(~mask.bool()[..., None], -torch.inf)
        ranked = ranked.sort(1, descending=True).values  # [B, L, E], valid ones first
        weights = self.weights(mask.sum(1), features.shape[1])  # [B, L]
        ranked = torch.where(weights[..., None] > 0, ranked, 0.0)
        return (weights[:, None] @ ranked)[:, 0]

    def row(self, length: int) -> Tensor:
        """Weight of each rank of a sample of `length` tokens, ``[1, length]``."""
        if self.table is not None:
            return self.table[length - 1 : length, :length]
        positions = sinusoids(length, self.position_width).to(self.linear.weight)
        states = self.gru(positions[None])[0].view(1, length, 2, -1).mean(2)  # [1, L, hidden]
        return torch.softmax(self.linear(states)[..., 0] / self.temperature, 1)

    def weights(self, lengths: Tensor, length: int) -> Tensor:
        """Weight of each rank, ``[B, length]``, zero beyond each sample's own length."""
        if self.table is not None:
            return self.table[lengths - 1, :length]
        positions = sinusoids(length, self.position_width).to(self.linear.weight)
        present, which = torch.unique(lengths, return_inverse=True)  # [U], [B]: equal lengths once
        sequence = nn.utils.rnn.pack_padded_sequence(
            positions.expand(len(present), -1, -1),
            present.cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self.gru(sequence)[0], batch_first=True, total_length=length
        )
        both = states.view(len(present), length, 2, -1).mean(2)  # [U, L, hidden]
        scores = self.linear(both)[..., 0] / self.temperature
        valid = torch.arange(length, device=lengths.device) < present[:, None]
        return torch.softmax(scores.masked_fill(~valid, -torch.inf), 1)[which]


def sinusoids(length: int, width: int) -> Tensor:
    """Sinusoidal positions ``[length, width]``: sine at even, cosine at odd dimensions."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * rates  # [L, width / 2]
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)
