"""Interaction and aggregation of a packed batch on a CPU: all groups of one length as one step.

Legend: B samples in groups of G samples of one length L, T tokens, N layers, d side width.

What `aggregate` computes, with the identity as R or without R. A batch of sentences has a group
for almost every length, so what costs is the number of operations, not their size: here 7 forward
and 10 backward a group, and the rest once for the batch, which is a third of what autograd takes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .interaction import EpsMode

__all__ = ["aggregate_groups"]

Sizes = tuple[tuple[int, int], ...]


class _Options(NamedTuple):
    sizes: Sizes
    layers: int
    identity: bool
    eps: float
    eps_mode: EpsMode


def aggregate_groups(
    anchor: Tensor,
    targets: Tensor,
    gate: Tensor,
    gate_bias: Tensor,
    *,
    sizes: Sizes,
    layers: int,
    identity: bool,
    eps: float,
    eps_mode: EpsMode,
) -> tuple[Tensor, Tensor]:
    """Interaction and aggregation of samples ordered by length.

    Args:
        anchor: a, ``[T, d]``.
        targets: t, ``[N T, d]``, the ``[N, L]`` tokens of each sample together.
        gate: w, ``[d]``.
        gate_bias: b, ``[1]``.
        sizes: samples and tokens each of every group, see `LengthGroups`.
        layers: N.
        identity: R is the identity; otherwise there is none.
        eps: see `l1_normalize`.
        eps_mode: see `l1_normalize`.

    Returns:
        ``sum_i p_i u_i`` of shape ``[T, d]`` and the confidence p, ``[B, N]``.
    """
    options = _Options(sizes, layers, identity, eps, eps_mode)
    anchor, targets = anchor.to(gate.dtype), targets.to(gate.dtype)
    with torch.autocast("cpu", enabled=False):  # many small products: no kernels for each shape
        result = _Aggregate.apply(options, anchor, targets, gate, gate_bias)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], result)


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, options: _Options, anchor: Tensor, targets: Tensor, *linear: Tensor
    ) -> tuple[Tensor, Tensor]:
        gate, bias = linear
        sizes, layers, identity, eps, eps_mode = options
        counts = torch.tensor(sizes)  # [groups, 2]
        lengths = torch.repeat_interleave(counts[:, 1], counts[:, 0])  # [B]
        ids = torch.repeat_interleave(lengths)  # sample of each token, [T]
        total = anchor.new_empty(len(ids), layers)  # |S|_1 of each row
        means = anchor.new_empty(len(lengths), layers, anchor.shape[1])  # mean(t_i)
        scores: list[Tensor] = []
        queries, keys = _tokens(sizes, anchor), _keys(sizes, targets, layers)
        for a, t, norm, mean in zip(
            queries, keys, _tokens(sizes, total), _samples(sizes, means), strict=True
        ):
            own = torch.bmm(a, t.flatten(1, 2).transpose(1, 2)).relu_()  # [G, L, N L]
            scores.append(own.view(*norm.shape, -1))  # S, [G, L, N, L]
            torch.sum(scores[-1], -1, out=norm)
            torch.mean(t, 2, out=mean)
        middle = anchor.new_zeros(len(lengths), anchor.shape[1]).index_add_(0, ids, anchor)
        middle /= lengths[:, None]  # mean(a), [B, d]
        trust = torch.softmax((means @ (middle * gate)[..., None])[..., 0] + bias, -1)  # [B, N]
        guard = total + eps if eps_mode == "add" else total.clamp_min(eps)
        ratio = trust.index_select(0, ids).div_(guard)  # p / |S|_1, [T, N]
        mixed = torch.empty_like(anchor)
        for t, own, share, p, out in zip(
            keys,
            scores,
            _tokens(sizes, ratio),
            _samples(sizes, trust),
            _tokens(sizes, mixed),
            strict=True,
        ):
            torch.bmm(_weights(own, share, p, identity).flatten(2), t.flatten(1, 2), out=out)
        if eps_mode == "clamp":  # where the guard is eps, the norm has no gradient
            ctx.guarded = total < eps
        ctx.options, ctx.scores = options, scores
        ctx.save_for_backward(
            anchor, targets, gate, ids, lengths, means, middle, trust, guard, ratio
        )
        return mixed, trust

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        anchor, targets, gate, ids, lengths, means, middle, trust, guard, ratio = ctx.saved_tensors
        sizes, layers, identity, _, eps_mode = ctx.options
        keys, outer = _keys(sizes, targets, layers), _tokens(sizes, grads[0].contiguous())
        slope = torch.empty_like(guard)  # sum_l dW S, [T, N]
        direct = torch.zeros_like(trust)  # through R, [B, N]
        changes: list[Tensor] = []  # dW, then dS, [G, L, N, L]
        for t, own, grad, edge, through in zip(
            keys,
            ctx.scores,
            outer,
            _tokens(sizes, slope),
            _samples(sizes, direct),
            strict=True,
        ):
            change = torch.bmm(grad, t.flatten(1, 2).transpose(1, 2)).view(own.shape)
            torch.sum(change * own, -1, out=edge)
            if identity:
                torch.sum(change.diagonal(0, 1, 3), -1, out=through)
            changes.append(change)
        slope /= guard
        given = direct.index_add_(0, ids, slope) + grads[1]  # dp, [B, N]
        rise = trust * (given - (given * trust).sum(-1, keepdim=True))  # d gate, [B, N]
        if eps_mode == "clamp":
            slope.masked_fill_(ctx.guarded, 0.0)
        spread = (rise[..., None] * (middle * gate)[:, None]) / lengths[:, None, None]  # [B, N, d]
        pull = (rise[:, None] @ means)[:, 0]  # d (w * mean(a)), [B, d]
        anchor_grad, target_grad = torch.empty_like(anchor), torch.empty_like(targets)
        for a, t, own, change, grad, share, edge, p, far, a_grad, t_grad in zip(
            _tokens(sizes, anchor),
            keys,
            ctx.scores,
            changes,
            outer,
            _tokens(sizes, ratio),
            _tokens(sizes, slope),
            _samples(sizes, trust),
            _samples(sizes, spread),
            _tokens(sizes, anchor_grad),
            _keys(sizes, target_grad, layers),
            strict=True,
        ):
            change.sub_(edge[..., None]).mul_(share[..., None])
            torch.ops.aten.threshold_backward.grad_input(change, own, 0.0, grad_input=change)
            flat = change.flatten(2)  # dS, [G, L, N L]
            torch.bmm(flat, t.flatten(1, 2), out=a_grad)
            weights = _weights(own, share, p, identity).flatten(2)
            own_grad = t_grad.flatten(1, 2)  # [G, N L, d]
            torch.bmm(weights.transpose(1, 2), grad, out=own_grad)
            own_grad.baddbmm_(flat.transpose(1, 2), a)
            t_grad.add_(far[:, :, None])
        anchor_grad += (pull * gate / lengths[:, None]).index_select(0, ids)
        return None, anchor_grad, target_grad, (pull * middle).sum(0), rise.sum().view(1)


def _weights(scores: Tensor, ratio: Tensor, trust: Tensor, identity: bool) -> Tensor:
    """``p (S / |S| + R)`` of one group, ``[G, L, N, L]``."""
    weights = scores * ratio[..., None]
    if identity:
        weights.diagonal(0, 1, 3).add_(trust[..., None])
    return weights


def _tokens(sizes: Sizes, values: Tensor) -> list[Tensor]:
    """Views ``[G, L, ...]`` of the groups of ``[T, ...]``."""
    parts = torch.split(values, [count * length for count, length in sizes])
    return [part.view(*size, -1) for part, size in zip(parts, sizes, strict=True)]


def _samples(sizes: Sizes, values: Tensor) -> tuple[Tensor, ...]:
    """Views ``[G, ...]`` of the groups of ``[B, ...]``."""
    return torch.split(values, [count for count, _ in sizes])


def _keys(sizes: Sizes, values: Tensor, layers: int) -> list[Tensor]:
    """Views ``[G, N, L, d]`` of the groups of ``[N T, d]``."""
    parts = torch.split(values, [layers * count * length for count, length in sizes])
    return [part.view(c, layers, n, -1) for part, (c, n) in zip(parts, sizes, strict=True)]
