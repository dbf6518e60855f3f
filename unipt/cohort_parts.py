"""The operations of `StackedClassifiers`: the parts of a side classifier over K trials at once.

Legend: K trials, T valid tokens (packed, the samples ordered by length), G samples of one length L,
N targets, D backbone width, d side width. Weights are ``[K, *shape]``, by their names in the
classifier.

The states are ordered and converted once for all trials. Behind Down the trials are further
samples: the groups of equal length hold K G samples, and a Linear is one batched GEMM over K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cohort_down import SharedStates
from .interaction import aggregate, masked_mean
from .interaction_groups import aggregate_groups
from .layers import StackedNorm
from .network import SideNetwork
from .packed import permute_rows
from .pooling import TokenPooling
from .products import linear

__all__ = ["TrialWeights", "mix_trials", "norm_trials", "pool_trials", "run_part"]

TrialWeights = Mapping[str, Tensor]


def run_part(
    part: nn.Module,
    name: str,
    values: Tensor,
    weights: TrialWeights,
    drop: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Apply a part of the classifier with each trial's weights.

    Args:
        part: of the classifier: Linear, a norm, an activation, Dropout, or a Sequential of them.
        name: of the part in the classifier.
        values: ``[K, R, in]``.
        weights: of all trials.
        drop: what stands for Dropout; None leaves it out.

    Returns:
        ``[K, R, out]``.

    Raises:
        TypeError: if there is no stacked form of the part.
    """
    if isinstance(part, nn.Sequential):
        for child_name, child in part.named_children():
            values = run_part(child, f"{name}.{child_name}", values, weights, drop)
        return values
    if isinstance(part, nn.Linear):
        bias = None if part.bias is None else weights[f"{name}.bias"]
        return _linear_trials(values, weights[f"{name}.weight"], bias)
    if isinstance(part, nn.LayerNorm | StackedNorm):
        scale, shift = (weights[f"{name}.{key}"].flatten(1) for key in ("weight", "bias"))
        return norm_trials(values, scale, shift, part.eps)
    if isinstance(part, nn.Dropout):
        return values if drop is None else drop(values)
    if isinstance(part, nn.ReLU | nn.GELU | nn.Identity):
        return part(values)  # type: ignore[no-any-return]
    raise TypeError(f"{name}, a {type(part).__name__}, has no form for several trials")


def _linear_trials(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` of each trial: ``[K, R, in]`` and ``[K, out, in]`` to ``[K, R, out]``."""
    if bias is None:
        return torch.bmm(values, weight.transpose(1, 2))
    if len(values) == 1:
        return linear(values, weight[0], bias[0])
    return torch.baddbmm(bias[:, None], values, weight.transpose(1, 2))


def norm_trials(values: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm of ``[K, R, E]`` with each trial's scale and shift ``[K, E]``."""
    width = values.shape[-1:]
    if values.device.type != "cpu":  # few launches
        return F.layer_norm(values, width, eps=eps) * scale[:, None] + shift[:, None]
    return torch.stack(  # fused norms: fewer passes
        [
            F.layer_norm(rows, width, weight, bias, eps)
            for rows, weight, bias in zip(values, scale, shift, strict=True)
        ]
    )


def mix_trials(
    side: SideNetwork,
    anchor: Tensor,
    targets: Tensor,
    shared: SharedStates,
    weights: TrialWeights,
) -> tuple[Tensor, Tensor]:
    """Interact, aggregate and project what `reduce_trials` gives, see `SideNetwork.mix`.

    Returns:
        ``a + P(sum_i p_i u_i)`` ``[K, T, d]`` and the confidence ``[K, B, N]``, ordered by length.
    """
    aggregated = _aggregate_together if shared.together else _aggregate_one
    mixed, trust = aggregated(side, anchor, targets, shared, weights)
    features = run_part(side.projection, "side.projection", mixed, weights)
    return anchor + features if side.anchor_skip else features, trust


def _aggregate_one(
    side: SideNetwork,
    anchor: Tensor,
    targets: Tensor,
    shared: SharedStates,
    weights: TrialWeights,
) -> tuple[Tensor, Tensor]:
    """A single trial, to ``[1, T, d]`` and ``[1, B, N]``."""
    mixed, trust = aggregate_groups(
        anchor[0],
        permute_rows(targets.reshape(-1, targets.shape[-1]), shared.target_rows(1)),
        weights["side.gate.weight"][0, 0],
        weights["side.gate.bias"][0],
        sizes=shared.groups.sizes,
        layers=targets.shape[1],
        identity=side.residual == "identity",
        eps=side.eps,
        eps_mode=side.eps_mode,
    )
    return mixed[None], trust[None]


def _aggregate_together(
    side: SideNetwork,
    anchor: Tensor,
    targets: Tensor,
    shared: SharedStates,
    weights: TrialWeights,
) -> tuple[Tensor, Tensor]:
    """All trials as further samples, to ``[K, T, d]`` and ``[K, B, N]``."""
    trials, layers, _, width = targets.shape
    sizes = shared.groups.sizes
    gate, gate_bias = weights["side.gate.weight"], weights["side.gate.bias"][..., None]  # [K, 1, .]
    ordered = permute_rows(targets.reshape(-1, width), shared.target_rows(trials))
    parts = torch.split(ordered, [trials * layers * count * length for count, length in sizes])
    slices = torch.split(anchor, [count * length for count, length in sizes], 1)
    mixed, trust = [], []
    for query, part, (count, length) in zip(slices, parts, sizes, strict=True):
        a = query.reshape(trials * count, length, width)
        means = masked_mean(a, None).view(trials, count, width)
        summed, confidence = aggregate(
            a,
            part.view(trials * count, layers, length, width),
            (means * gate).view(-1, 1, width),
            gate_bias.expand(-1, count, -1).reshape(-1, 1, 1),
            mask=None,
            residual=None if side.residual == "none" else shared.identity(side, a),
            eps=side.eps,
            eps_mode=side.eps_mode,
        )
        mixed.append(summed.view(trials, -1, width))
        trust.append(confidence.view(trials, count, layers))
    return torch.cat(mixed, 1), torch.cat(trust, 1)


def pool_trials(
    pooling: TokenPooling, features: Tensor, shared: SharedStates, weights: TrialWeights
) -> Tensor:
    """Pool features ``[K, T, E]`` over the tokens of each sample to ``[K, B, P]``."""
    trials, tokens, _ = features.shape
    scores = None
    if pooling.score is not None:
        scores = run_part(pooling.score, "pooling.score", features, weights).flatten()
    starts = torch.arange(trials, device=features.device)[:, None] * tokens
    offsets = torch.cat(((shared.offsets[:-1] + starts).flatten(), starts[-1] + tokens))
    pooled = pooling.pool_packed(features.flatten(0, 1), offsets, scores)
    return pooled.view(trials, -1, pooled.shape[-1])
