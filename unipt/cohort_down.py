"""Down over K trials: states that are read, ordered and converted once, and their reduction.

Legend: K trials, T valid tokens (packed, the samples ordered by length), M = N + 1 states of width
D (the anchor last), d side width.

All trials are one GEMM [T, D] x [D, K d] a state; on a CPU (`reduce_layers`) K is as small as makes
it fast. With bfloat16 states the products are bfloat16, the sums float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from .interaction import residual_rows
from .network import SideNetwork
from .packed import check_offsets, group_by_length, invert
from .reduction import reduce_layers

__all__ = ["SharedStates", "reduce_trials"]


class SharedStates:
    """A packed batch as all trials read it: ordered by length, converted, after the input norm.

    Args:
        side: the side network's options.
        states: ``[M, T, D]``, of any floating type.
        offsets: ``LongTensor [B + 1]``.
        dtype: of the products with the states.
        together: work on all trials at once behind Down too, instead of one after another.

    Attributes:
        inputs: ordered, one ``[T, D]`` a state.
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
        self.inputs: list[Tensor] = []
        for state in states:  # one by one: each stays in the cache until it has its last form
            ordered = state[self.groups.tokens].to(dtype)
            self.inputs.append(side.target_down.prepare(ordered).to(dtype))
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
    targets = _reduce(side, "target", shared, shared.inputs[:-1], weights)
    return _reduce(side, "anchor", shared, shared.inputs[-1:], weights)[:, 0], targets


def _reduce(
    side: SideNetwork,
    part: str,
    shared: SharedStates,
    states: list[Tensor],
    weights: Mapping[str, Tensor],
) -> Tensor:
    """Reduce n states to ``[K, n, T, d]`` by the anchor's or the targets' Down."""
    down, name = side.target_down, f"side.{part}_down."
    width = side.widths[0]
    weight, bias = weights[f"{name}linear.weight.{width}"], weights[f"{name}linear.bias"]
    if down.linear.standardize:
        weight = weight / weights[f"{name}linear.scale_{width}"][:, None]
        bias = bias - (weight @ weights[f"{name}linear.mean_{width}"][..., None])[..., 0]
    norm: tuple[Tensor, ...] = ()
    if down.norm is not None:
        norm = (weights[f"{name}norm.weight"], weights[f"{name}norm.bias"])  # [K, n, d] each
    eps = 0.0 if down.norm is None else down.norm.eps
    if shared.together:
        return _reduce_together(torch.stack(states), eps, weight, bias, norm)
    return reduce_layers(states, weight, bias, norm, eps=eps)


def _reduce_together(
    states: Tensor, eps: float, weight: Tensor, bias: Tensor, norm: tuple[Tensor, ...]
) -> Tensor:
    trials, layers, narrow, width = weight.shape
    wide = weight.permute(1, 3, 0, 2).reshape(layers, width, -1)  # [n, D, K d]
    shift = bias.transpose(0, 1).reshape(layers, 1, -1)
    if not torch.is_autocast_enabled(states.device.type):
        states = states.to(wide.dtype)
    reduced = torch.baddbmm(shift, states, wide)  # [n, T, K d]
    reduced = reduced.view(layers, -1, trials, narrow).permute(2, 0, 1, 3)  # [K, n, T, d]
    if not norm:
        return reduced
    scale, offset = (value[:, :, None] for value in norm)
    return F.layer_norm(reduced, (narrow,), eps=eps) * scale + offset
