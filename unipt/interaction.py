"""Parallel interaction and confidence aggregation, the two equations every variant shares.

Legend: G samples of one length (or a padded batch), N layers, Q anchor tokens, L target tokens,
d side width.

    S_i = relu((a t_i^T) * m)                     l1-normalised over the keys: A_i = S_i / |S_i| + R
    p   = softmax_i(w . (mean(a) * mean(t_i)) + b)
    out = sum_i p_i A_i t_i

R is the residual: the identity, the row of one position, or nothing. Two identities keep it
cheap: ``w . (mean(a) * mean(t_i)) = mean_l(t_i[l] . (w * mean(a)))``, so the gate is one more
query row of the same GEMM; and ``sum_i p_i A_i t_i = [p_1 A_1 | .. | p_N A_N] [t_1; ..; t_N]``,
so the layers are summed inside one GEMM and no u_i [N, L, d] is ever written. Price, whatever the
variant: two GEMMs [Q + 1, d] x [d, N L] and [Q, N L] x [N L, d] a sample (UniPT, arXiv 2308.14316,
section 3).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "EpsMode",
    "Residual",
    "aggregate",
    "attend",
    "causal_mask",
    "l1_normalize",
    "masked_mean",
    "residual_rows",
    "running_mean",
]

EpsMode = Literal["add", "clamp"]
Residual = Literal["identity", "position", "none"]


def l1_normalize(scores: Tensor, *, eps: float, eps_mode: EpsMode) -> Tensor:
    """Divide non-negative scores by their sum over the last dimension.

    Args:
        scores: ``[..., L]``, not negative.
        eps: guards rows of zeros, which stay zero.
        eps_mode: "add" divides by ``sum + eps``, "clamp" by ``max(sum, eps)``.
    """
    return scores / l1_norm(scores, eps=eps, eps_mode=eps_mode)


def l1_norm(scores: Tensor, *, eps: float, eps_mode: EpsMode) -> Tensor:
    """Return the guarded sum over the last dimension, ``[..., 1]``; see `l1_normalize`."""
    total = scores.sum(-1, keepdim=True)
    return total + eps if eps_mode == "add" else total.clamp_min(eps)


def attend(
    query: Tensor, keys: Tensor, mask: Tensor | None, *, eps: float, eps_mode: EpsMode
) -> Tensor:
    """Relu attention ``l1(relu(q k^T * m)) k`` without residual.

    Args:
        query: ``[..., Q, d]``.
        keys: ``[..., L, d]``, also the values.
        mask: ``[..., L]``, true at valid keys, or None.
        eps: see `l1_normalize`.
        eps_mode: see `l1_normalize`.

    Returns:
        ``[..., Q, d]``.
    """
    scores = F.relu(query @ keys.transpose(-1, -2))  # [..., Q, L]
    if mask is not None:
        scores = scores * mask[..., None, :].to(scores.dtype)
    return l1_normalize(scores, eps=eps, eps_mode=eps_mode) @ keys


def residual_rows(residual: Residual, anchor: Tensor, length: int, position: Tensor) -> Tensor:
    """Return R as ``[1 or G, Q, L]``: the identity, or a one at each sample's position."""
    if residual == "identity":
        return torch.eye(length, dtype=anchor.dtype, device=anchor.device)[None]
    steps = torch.arange(length, device=anchor.device)
    return (steps == position[:, None])[:, None].to(anchor.dtype)  # [G, 1, L]


def masked_mean(states: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the valid tokens, ``[G, L, d]`` and mask ``[G, L]`` to ``[G, 1, d]``."""
    if mask is None:
        return states.mean(1, keepdim=True)
    valid = mask.to(states.dtype)[:, None]  # [G, 1, L]
    return (valid / valid.sum(-1, keepdim=True)) @ states


def running_mean(states: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the valid tokens up to and with each position, ``[G, L, d] -> [G, L, d]``."""
    return l1_normalize(causal_mask(states, mask).to(states.dtype), eps=1.0, eps_mode="clamp") @ (
        states
    )


def causal_mask(states: Tensor, mask: Tensor | None) -> Tensor:
    """Which keys each position of ``states [G, L, d]`` may use: ``[1 or G, L, L]`` (bool)."""
    steps = torch.arange(states.shape[1], device=states.device)
    past = (steps <= steps[:, None])[None]  # [1, L, L]
    return past if mask is None else past & mask.bool()[:, None]


def aggregate(
    anchor: Tensor,
    targets: Tensor,
    gate_query: Tensor,
    gate_bias: Tensor,
    *,
    mask: Tensor | None,
    residual: Tensor | None,
    eps: float,
    eps_mode: EpsMode,
) -> tuple[Tensor, Tensor]:
    """Interaction and aggregation of one batch of equal (or padded) length.

    Args:
        anchor: a, ``[G, Q, d]``.
        targets: t, ``[G, N, L, d]``.
        gate_query: ``w * mean(a)``, ``[G, R, d]``; R = 1, or Q for one gate per token (causal).
        gate_bias: b, ``[1]``.
        mask: ``[1 or G, R, L]``, true at the target tokens that may be used, or None if all may.
        residual: R from `residual_rows`, or None.
        eps: see `l1_normalize`.
        eps_mode: see `l1_normalize`.

    Returns:
        ``sum_i p_i u_i`` of shape ``[G, Q, d]`` and the confidence p, ``[G, R, N]``.
    """
    samples, count, layers = anchor.shape[0], anchor.shape[1], targets.shape[1]
    keys = targets.flatten(1, 2)  # [G, N L, d]
    queries = torch.cat((anchor, gate_query), 1)  # [G, Q + R, d]
    scores = torch.bmm(queries, keys.transpose(1, 2))  # [G, Q + R, N L]
    scores = scores.view(samples, -1, layers, targets.shape[2])  # [G, Q + R, N, L]
    gate, scores = scores[:, count:], F.relu(scores[:, :count])
    if mask is None:
        gate = gate.mean(-1)  # [G, R, N]
    else:
        valid = mask.to(scores.dtype)[:, :, None]  # [G, R, 1, L]
        scores = scores * valid
        gate = (gate * valid).sum(-1) / valid.sum(-1).clamp_min(1.0)
    confidence = torch.softmax(gate + gate_bias, -1)  # [G, R, N]
    trust = confidence[..., None]  # [G, R, N, 1]
    weights = scores * trust / l1_norm(scores, eps=eps, eps_mode=eps_mode)  # [G, Q, N, L]
    if residual is not None:
        weights = weights + residual[:, :, None] * trust
    return torch.bmm(weights.flatten(2), keys), confidence
