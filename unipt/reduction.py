"""Down on a CPU: all layers of one width, state by state, so that each stays in the cache.

Legend: K models that read the same states, N layers, T tokens, D backbone width, d side width.

A state is converted to the type of the products (and its input norm applied) just before each of
its two products, and never kept: of N states as they came from a cache, only one is float32 at a
time. Price: one product [T, D] x [D, K d] forward, one backward, and two conversions a state.
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
    """``LayerNorm(x_n W_kn^T + b_kn)`` of every layer; no gradient reaches the states.

    Args:
        states: N of ``[T, D]``, of any floating type.
        weight: ``[K, N, d, D]``.
        bias: ``[K, N, d]``.
        norm: scale and shift, ``[K, N, d]`` each; nothing leaves the norm out.
        eps: added to the variance.
        prepare: brings a state to the type of the products (the weight's, or bfloat16); by default
            it is there already.

    Returns:
        ``[K, N, T, d]``, of the weight's type.
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
        models, layers, narrow, width = weight.shape
        output = weight.new_empty(models, layers, states[0].shape[0], narrow)
        saved: list[Tensor] = []
        for layer, state in enumerate(states):
            ready = state if prepare is None else prepare(state)
            wide = weight[:, layer].reshape(-1, width).to(ready.dtype)
            product = inner_product(ready, wide, bias[:, layer].flatten())  # [T, K d]
            for model, reduced in enumerate(torch.split(product, narrow, 1)):
                if not norm:
                    output[model, layer].copy_(reduced)
                    continue
                own = reduced.contiguous()
                scale, shift = (value[model, layer] for value in norm)
                normed, *about = torch.native_layer_norm(own, (narrow,), scale, shift, eps)
                output[model, layer].copy_(normed)
                saved += [own, *about]  # mean and 1 / deviation
        ctx.states, ctx.prepare, ctx.shape, ctx.norm = states, prepare, weight.shape, bool(norm)
        ctx.save_for_backward(*saved, *norm)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (models, layers, narrow, width) = grads, ctx.shape
        weight_grad = grad.new_empty(ctx.shape)
        bias_grad = grad.new_empty(models, layers, narrow)
        norm_grads = [torch.empty_like(bias_grad) for _ in range(2 if ctx.norm else 0)]
        saved = iter(ctx.saved_tensors[:-2] if ctx.norm else ())
        for layer, state in enumerate(ctx.states):
            parts = []
            for model in range(models):
                own = grad[model, layer].contiguous()
                if ctx.norm:
                    reduced, mean, inverse = next(saved), next(saved), next(saved)
                    affine = [value[model, layer] for value in ctx.saved_tensors[-2:]]
                    own, *rest = torch.ops.aten.native_layer_norm_backward(
                        own, reduced, [narrow], mean, inverse, *affine, [True] * 3
                    )
                    for total, part in zip(norm_grads, rest, strict=True):
                        total[model, layer] = part
                parts.append(own)
            wide = parts[0] if models == 1 else torch.cat(parts, 1)  # [T, K d]
            bias_grad[:, layer] = wide.sum(0).view(models, narrow)
            ready = state if ctx.prepare is None else ctx.prepare(state)
            product = outer_product(wide.to(ready.dtype), ready)
            weight_grad[:, layer] = product.view(models, narrow, width)
        return None, weight_grad, bias_grad, *norm_grads
