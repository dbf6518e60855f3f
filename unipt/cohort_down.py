"""Down over K trials: states that are read, ordered and converted once, and their reduction.

Legend: K trials, T valid tokens (packed, the samples ordered by length), M = N + 1 states of width
D (the anchor last), d side width.

On an accelerator all trials are one GEMM [T, D] x [D, K d] a state. On a CPU a trial is a GEMM of
its own, so that what follows it (norm, interaction) finds its rows in the processor's cache; the
products go through oneDNN, which has the wide vectors of every processor (measured on a Zen 5, one
core, d = 48: 170 GFLOP/s in float32 where the default has 75). With bfloat16 states the products
are bfloat16, the sums float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from .interaction import residual_rows
from .network import SideNetwork
from .packed import check_offsets, group_by_length, invert

__all__ = ["SharedStates", "reduce_trials"]


class SharedStates:
    """A packed batch as all trials read it: ordered by length, converted, after the input norm.

    Args:
        side: the side network's options.
        states: ``[M, T, D]``, of any floating type.
        offsets: ``LongTensor [B + 1]``.
        dtype: of the products with the states.
        together: reduce all trials in one GEMM a state, instead of one after another.

    Attributes:
        inputs: ordered, one ``[T, D]`` a state, in oneDNN's form where it is used.
        offsets: of the ordered samples.
        groups: the order.
        samples: place of each sample in the order, ``[B]``.
        together: as given.

    Raises:
        ValueError: if offsets and states do not fit each other or the side network.
    """

    def __init__(
        self,
        side: SideNetwork,
        states: Tensor,
        offsets: Tensor,
        *,
        dtype: torch.dtype,
        together: bool,
    ) -> None:
        width, layers = side.widths[0], len(side.widths) + 1
        if states.dim() != 3 or states.shape[::2] != (layers, width):
            raise ValueError(f"states have shape {list(states.shape)}; give [{layers}, T, {width}]")
        check_offsets(offsets, states.shape[1])
        self.groups = group_by_length(offsets)
        lengths = (offsets[1:] - offsets[:-1])[self.groups.samples]
        self.offsets = F.pad(lengths.cumsum(0), (1, 0))
        self.samples = invert(self.groups.samples)
        self.together, self.tokens, self.layers = together, states.shape[1], layers
        blocked = _onednn(states, dtype) and not together
        self.inputs: list[Tensor] = []
        for state in states:  # one by one: each stays in the cache until it has its last form
            ordered = side.target_down.prepare(state[self.groups.tokens].to(dtype))
            self.inputs.append(ordered.to_mkldnn() if blocked else ordered)
        self._rows: dict[int, Tensor] = {}
        self._identities: dict[int, Tensor] = {}

    def target_rows(self, trials: int) -> Tensor:
        """Rows of ``[K, N, T]`` flattened, so that each group lies together as [K, G, N, L]."""
        if trials not in self._rows:
            layers, device = self.layers - 1, self.samples.device
            planes = torch.arange(trials * layers, device=device) * self.tokens
            planes = planes.view(trials, 1, layers, 1)
            steps = torch.arange(self.tokens, device=device)
            parts = torch.split(steps, [count * length for count, length in self.groups.sizes])
            rows = [
                (part.view(count, 1, length) + planes).flatten()
                for part, (count, length) in zip(parts, self.groups.sizes, strict=True)
            ]
            self._rows[trials] = torch.cat(rows)
        return self._rows[trials]

    def identity(self, side: SideNetwork, anchor: Tensor) -> Tensor:
        """The residual of a group of one length, see `residual_rows`."""
        length = anchor.shape[1]
        if length not in self._identities:
            place = self.groups.samples[:1]
            self._identities[length] = residual_rows(side.residual, anchor, length, place)
        return self._identities[length]


def reduce_trials(
    side: SideNetwork, shared: SharedStates, weights: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Bring the shared states to each trial's a ``[K, T, d]`` and t ``[K, N, T, d]``."""
    down, width = side.target_down, side.widths[0]

    def both(name: str, dim: int = 1) -> Tensor:
        parts = [weights[f"side.{part}_down.{name}"] for part in ("target", "anchor")]
        return torch.cat(parts, dim)

    weight, bias = both(f"linear.weight.{width}"), both("linear.bias")  # [K, M, d, D], [K, M, d]
    if down.linear.standardize:
        weight = weight / both(f"linear.scale_{width}", 0)[:, None]
        bias = bias - (weight @ both(f"linear.mean_{width}", 0)[..., None])[..., 0]
    norm = () if down.norm is None else (both("norm.weight"), both("norm.bias"))
    eps = 0.0 if down.norm is None else down.norm.eps
    if shared.together:
        reduced = _reduce_together(torch.stack(shared.inputs), eps, weight, bias, norm)
        return reduced[:, -1], reduced[:, :-1]
    result = _ReduceEach.apply(shared, eps, weight, bias, *norm)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], result)


def _reduce_together(
    states: Tensor, eps: float, weight: Tensor, bias: Tensor, norm: tuple[Tensor, ...]
) -> Tensor:
    trials, layers, narrow, width = weight.shape
    wide = weight.permute(1, 3, 0, 2).reshape(layers, width, -1)  # [M, D, K d]
    shift = bias.transpose(0, 1).reshape(layers, 1, -1)
    if not torch.is_autocast_enabled(states.device.type):
        states = states.to(wide.dtype)
    reduced = torch.baddbmm(shift, states, wide)  # [M, T, K d]
    reduced = reduced.view(layers, -1, trials, narrow).permute(2, 0, 1, 3)  # [K, M, T, d]
    if not norm:
        return reduced
    scale, offset = (value[:, :, None] for value in norm)
    return F.layer_norm(reduced, (narrow,), eps=eps) * scale + offset


class _ReduceEach(torch.autograd.Function):
    """``LayerNorm(x_m W_km^T + b_km)`` trial by trial and state by state, on a CPU."""

    @staticmethod
    def forward(
        ctx: Any, shared: SharedStates, eps: float, weight: Tensor, bias: Tensor, *norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        trials, layers, narrow, _ = weight.shape
        tokens, last = shared.tokens, layers - 1
        targets = weight.new_empty(trials, last, tokens, narrow)
        anchor = weight.new_empty(trials, tokens, narrow)
        saved: list[Tensor] = []
        for trial in range(trials):
            for layer, state in enumerate(shared.inputs):
                reduced = _linear(state, weight[trial, layer], bias[trial, layer])
                if norm:
                    scale, shift = (value[trial, layer] for value in norm)
                    saved.append(reduced)
                    reduced, *about = torch.native_layer_norm(
                        reduced, scale.shape, scale, shift, eps
                    )
                    saved += about  # mean and 1 / deviation
                (anchor[trial] if layer == last else targets[trial, layer]).copy_(reduced)
        ctx.shared, ctx.shape, ctx.norm = shared, weight.shape, bool(norm)
        ctx.save_for_backward(*saved, *norm)
        return anchor, targets

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (anchor, targets), (trials, layers, narrow, _) = grads, ctx.shape
        weight_grad = anchor.new_empty(ctx.shape)
        bias_grad = anchor.new_empty(trials, layers, narrow)
        norm_grads = [torch.empty_like(bias_grad) for _ in range(2 if ctx.norm else 0)]
        saved = iter(ctx.saved_tensors[:-2] if ctx.norm else ())
        for trial in range(trials):
            for layer, state in enumerate(ctx.shared.inputs):
                own = anchor[trial] if layer == layers - 1 else targets[trial, layer]
                if ctx.norm:
                    affine = [value[trial, layer] for value in ctx.saved_tensors[-2:]]
                    own, *rest = torch.ops.aten.native_layer_norm_backward(
                        own.contiguous(),
                        next(saved),
                        [narrow],
                        next(saved),
                        next(saved),
                        *affine,
                        [True] * 3,
                    )
                    for total, part in zip(norm_grads, rest, strict=True):
                        total[trial, layer] = part
                bias_grad[trial, layer] = own.sum(0)
                weight_grad[trial, layer] = _weight_grad(own, state)
        return None, None, weight_grad, bias_grad, *norm_grads


def _onednn(states: Tensor, dtype: torch.dtype) -> bool:
    """Whether products in `dtype` with these states go through oneDNN's own tensors."""
    present: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return present and dtype == torch.float32 and states.device.type == "cpu"


def _linear(state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x W^T + b`` in float32, ``[T, D]`` and ``[d, D]`` to ``[T, d]``."""
    if state.is_mkldnn:
        blocked = (value.contiguous().to_mkldnn() for value in (weight, bias))
        return cast(Tensor, torch.ops.aten.mkldnn_linear(state, *blocked).to_dense())
    if state.dtype == torch.bfloat16:
        return torch.mm(state, weight.to(state.dtype).T).float() + bias
    return torch.addmm(bias, state, weight.T)


def _weight_grad(grad: Tensor, state: Tensor) -> Tensor:
    """``g^T x``, ``[T, d]`` and ``[T, D]`` to ``[d, D]``."""
    if state.is_mkldnn:
        blank = grad.new_empty(grad.shape[1], state.shape[1]).to_mkldnn()
        product, _ = torch.ops.aten.mkldnn_linear_backward_weights(
            grad.contiguous().to_mkldnn(), state, blank, False
        )
        return cast(Tensor, product.to_dense())
    return torch.mm(grad.to(state.dtype).T, state).to(grad.dtype)
