"""The operations of `StackedClassifiers`: the parts of a side classifier over K trials at once.

Legend: K trials, T valid tokens (packed), G samples of one length L, N targets, D backbone width,
d side width. Weights are ``[K, *shape]``, by their names in the classifier.

Down is one GEMM [T, D] x [D, K d] a layer for all trials. Behind it the trials are further samples:
the groups of equal length hold K G samples, and a Linear is one batched GEMM over K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .interaction import aggregate, masked_mean, residual_rows
from .layers import StackedNorm
from .network import SideNetwork
from .packed import LengthGroups, check_offsets, group_by_length, invert, permute_rows

__all__ = ["MixedTrials", "TrialWeights", "mix_trials", "reduce_trials", "run_part"]

TrialWeights = Mapping[str, Tensor]


class MixedTrials(NamedTuple):
    """The mixed states of all trials, the samples ordered by length."""

    features: Tensor
    """``a + P(sum_i p_i u_i)``, ``[K, T, d]``."""
    confidence: Tensor
    """``[K, B, N]``."""
    offsets: Tensor
    """Bounds of the ordered samples, ``[B + 1]``."""
    samples: Tensor
    """Place of each sample in the order, ``[B]``."""


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
        weight = weights[f"{name}.weight"].transpose(1, 2)  # [K, in, out]
        if part.bias is None:
            return torch.bmm(values, weight)
        return torch.baddbmm(weights[f"{name}.bias"][:, None], values, weight)
    if isinstance(part, nn.LayerNorm | StackedNorm):
        scale, shift = (weights[f"{name}.{key}"].flatten(1) for key in ("weight", "bias"))
        return norm_trials(values, scale, shift, part.eps)
    if isinstance(part, nn.Dropout):
        return values if drop is None else drop(values)
    if isinstance(part, nn.ReLU | nn.GELU | nn.Identity):
        return part(values)  # type: ignore[no-any-return]
    raise TypeError(f"{name}, a {type(part).__name__}, has no form for several trials")


def norm_trials(values: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm of ``[K, R, E]`` with each trial's scale and shift ``[K, E]``."""
    width = values.shape[-1:]
    return torch.stack(
        [
            F.layer_norm(rows, width, weight, bias, eps)
            for rows, weight, bias in zip(values, scale, shift, strict=True)
        ]
    )


def reduce_trials(
    side: SideNetwork, states: Tensor, weights: TrialWeights
) -> tuple[Tensor, Tensor]:
    """Bring states ``[N + 1, T, D]`` to each trial's a ``[T, K, d]`` and t ``[N, T, K, d]``."""
    down, width = side.target_down, states.shape[-1]

    def both(name: str, dim: int = 1) -> Tensor:
        parts = [weights[f"side.{part}_down.{name}"] for part in ("target", "anchor")]
        return torch.cat(parts, dim)

    weight, bias = both(f"linear.weight.{width}"), both("linear.bias")  # [K, N + 1, d, D], [.., d]
    if down.linear.standardize:
        weight = weight / both(f"linear.scale_{width}", 0)[:, None]
        bias = bias - (weight @ both(f"linear.mean_{width}", 0)[..., None])[..., 0]
    trials, layers, narrow = bias.shape
    wide = weight.permute(1, 3, 0, 2).reshape(layers, width, -1)  # [N + 1, D, K d]
    inputs = down.prepare(states)
    if inputs.dtype != wide.dtype and not torch.is_autocast_enabled(inputs.device.type):
        inputs = inputs.to(wide.dtype)
    shift = bias.transpose(0, 1).reshape(layers, 1, -1)
    reduced = torch.baddbmm(shift, inputs, wide)  # [N + 1, T, K d]
    reduced = reduced.view(layers, -1, trials, narrow)
    if down.norm is not None:
        scale, shift = (both(f"norm.{key}").transpose(0, 1)[:, None] for key in ("weight", "bias"))
        reduced = F.layer_norm(reduced, (narrow,), eps=down.norm.eps) * scale + shift
    return reduced[-1], reduced[:-1]


def mix_trials(
    side: SideNetwork, anchor: Tensor, targets: Tensor, offsets: Tensor, weights: TrialWeights
) -> MixedTrials:
    """Interaction, aggregation and projection of reduced states, see `SideNetwork.mix`."""
    layers, tokens, trials, width = targets.shape
    check_offsets(offsets, tokens)
    groups = group_by_length(offsets)
    gate, gate_bias = weights["side.gate.weight"], weights["side.gate.bias"][..., None]  # [K, 1, .]
    queries = anchor.transpose(0, 1)[:, groups.tokens]  # [K, T, d], ordered by length
    ordered = permute_rows(targets.reshape(-1, width), _target_rows(groups, layers, trials))
    parts = torch.split(ordered, [trials * layers * g * length for g, length in groups.sizes])
    slices = torch.split(queries, [g * length for g, length in groups.sizes], 1)
    mixed, trust = [], []
    for query, part, (count, length) in zip(slices, parts, groups.sizes, strict=True):
        a = query.reshape(trials * count, length, width)
        residual = None
        if side.residual != "none":
            residual = residual_rows(side.residual, a, length, groups.samples[:1])
        means = masked_mean(a, None).view(trials, count, width)
        summed, confidence = aggregate(
            a,
            part.view(trials * count, layers, length, width),
            (means * gate).view(-1, 1, width),
            gate_bias.expand(-1, count, -1).reshape(-1, 1, 1),
            mask=None,
            residual=residual,
            eps=side.eps,
            eps_mode=side.eps_mode,
        )
        mixed.append(summed.view(trials, -1, width))
        trust.append(confidence.view(trials, count, layers))
    features = run_part(side.projection, "side.projection", torch.cat(mixed, 1), weights)
    lengths = (offsets[1:] - offsets[:-1])[groups.samples]
    return MixedTrials(
        features=queries + features if side.anchor_skip else features,
        confidence=torch.cat(trust, 1),
        offsets=F.pad(lengths.cumsum(0), (1, 0)),
        samples=invert(groups.samples),
    )


def _target_rows(groups: LengthGroups, layers: int, trials: int) -> Tensor:
    """Rows of ``[N, T, K]`` flattened, so that each group lies together as ``[K, G, N, L]``."""
    tokens = groups.tokens
    layer = torch.arange(layers, device=tokens.device)[:, None] * tokens.shape[0]  # [N, 1]
    trial = torch.arange(trials, device=tokens.device)[:, None, None, None]
    parts = torch.split(tokens, [count * length for count, length in groups.sizes])
    rows = [
        ((part.view(count, 1, length) + layer) * trials + trial).flatten()
        for part, (count, length) in zip(parts, groups.sizes, strict=True)
    ]
    return torch.cat(rows)
