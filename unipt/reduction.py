"""Down on a CPU: all layers of one width, state by state, so that each stays in the cache.

Legend: N layers, T tokens, D backbone width, d side width.

A state is converted to the type of the products (and its input norm applied) just before each of
its two products, and never kept: of N states as they came from a cache, only one is float32 at a
time. Price: one product forward, one backward, and two conversions a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .products import inner_product, outer_product

__all__ = ["reduce_layers"]


def reduce_layers(
    states: Sequence[Tensor] | Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Sequence[Tensor] = (),
    *,
    eps: float = 0.0,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``LayerNorm(x_n W_n^T + b_n)`` of every layer; no gradient reaches the states.

    Args:
        states: N of ``[T, D]``, of any floating type.
        weight: ``[N, d, D]``.
        bias: ``[N, d]``.
        norm: scale and shift, ``[N, d]`` each; nothing leaves the norm out.
        eps: added to the variance.
        prepare: brings a state to the type of the products (the weight's, or bfloat16); by default
            it is there already.

    Returns:
        ``[N, T, d]``, of the weight's type.
    """
    with torch.autocast("cpu", enabled=False):
        result = _Reduce.apply((states, prepare, eps), weight, bias, *norm)  # type: ignore[no-untyped-call]
    return cast(Tensor, result)


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, given: tuple[Any, ...], weight: Tensor, bias: Tensor, *norm: Tensor
    ) -> Tensor:
        states, prepare, eps = given
        layers, narrow, _ = weight.shape
        output = weight.new_empty(layers, states[0].shape[0], narrow)
        saved: list[Tensor] = []
        for layer, state in enumerate(states):
            ready = state if prepare is None else prepare(state)
            reduced = inner_product(ready, weight[layer].to(ready.dtype), bias[layer])
            if norm:
                scale, shift = (value[layer] for value in norm)
                saved.append(reduced)
                reduced, *about = torch.native_layer_norm(reduced, (narrow,), scale, shift, eps)
                saved += about  # mean and 1 / deviation
            output[layer].copy_(reduced)
        ctx.states, ctx.prepare, ctx.shape, ctx.norm = states, prepare, weight.shape, bool(norm)
        ctx.save_for_backward(*saved, *norm)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (layers, narrow, _) = grads, ctx.shape
        weight_grad = grad.new_empty(ctx.shape)
        bias_grad = grad.new_empty(layers, narrow)
        norm_grads = [torch.empty_like(bias_grad) for _ in range(2 if ctx.norm else 0)]
        saved = iter(ctx.saved_tensors[:-2] if ctx.norm else ())
        for layer, state in enumerate(ctx.states):
            own = grad[layer].contiguous()
            if ctx.norm:
                affine = [value[layer] for value in ctx.saved_tensors[-2:]]
                reduced, mean, inverse = next(saved), next(saved), next(saved)
                own, *rest = torch.ops.aten.native_layer_norm_backward(
                    own, reduced, [narrow], mean, inverse, *affine, [True] * 3
                )
                for total, part in zip(norm_grads, rest, strict=True):
                    total[layer] = part
            bias_grad[layer] = own.sum(0)
            ready = state if ctx.prepare is None else ctx.prepare(state)
            weight_grad[layer] = outer_product(own.to(ready.dtype), ready)
        return None, weight_grad, bias_grad, *norm_grads
