"""The linear parts of a side network: Down, projection and Up, with the layers' weights stacked.

Legend: N layers, d side width, D backbone width, ``...`` token dimensions ([T] or [B, L]).
Price of Down: one batched GEMM [N] x ([T, D] x [D, d]) for all layers of equal width, and the same
again for the weight gradients; the states need no gradient, so no third one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .products import Linear, cpu_type
from .reduction import reduce_layers

__all__ = ["Down", "Projection", "StackedLinear", "StackedNorm", "Up"]

Activation = Literal["none", "relu"]
Norm = Literal["layer", "batch", "none"]
InputNorm = Literal["none", "layer", "standard"]
ProjectionKind = Literal["none", "linear", "mlp"]
UpKind = Literal["none", "linear", "relu_linear", "relu_linear_norm"]


def check_choice(name: str, value: str, allowed: object) -> None:
    """Raise a readable ValueError unless ``value`` is one of the Literal ``allowed``."""
    choices = get_args(allowed)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}")


class StackedLinear(nn.Module):
    """One Linear per layer, ``y_n = x_n W_n^T + b_n``; weights of equal width form one tensor.

    Args:
        widths: input width of each layer, in order.
        out_width: output width d of all layers.
        standardize: keep a mean and a scale of every input feature (0 and 1 until
            `set_statistics`) and reduce ``(x_n - mean_n) / scale_n``. They are folded into the
            weights at each call, which costs N D d products instead of N T D.
    """

    def __init__(self, widths: Sequence[int], out_width: int, *, standardize: bool = False) -> None:
        super().__init__()
        self.standardize = standardize
        self.widths = tuple(widths)
        self.out_width = out_width
        self.members: dict[int, list[int]] = {}  # width -> positions of the layers
        for position, width in enumerate(self.widths):
            self.members.setdefault(width, []).append(position)
        self.weight = nn.ParameterDict(
            {
                str(width): nn.Parameter(torch.empty(len(layers), out_width, width))
                for width, layers in self.members.items()
            }
        )
        self.bias = nn.Parameter(torch.empty(len(self.widths), out_width))
        if standardize:
            for width, layers in self.members.items():
                self.register_buffer(f"mean_{width}", torch.zeros(len(layers), width))
                self.register_buffer(f"scale_{width}", torch.ones(len(layers), width))
        self.reset_affine()

    def reset_affine(self) -> None:
        """Initialise each layer as torch.nn.Linear does."""
        with torch.no_grad():
            for width, layers in self.members.items():
                bound = 1.0 / math.sqrt(width)
                self.weight[str(width)].uniform_(-bound, bound)
                for position in layers:
                    self.bias[position].uniform_(-bound, bound)

    def set_statistics(self, position: int, mean: Tensor, scale: Tensor) -> None:
        """Set mean and scale (standard deviation), both ``[D]``, of one layer's features.

        Features whose scale is 0 or not finite keep a scale of 1.
        """
        width = self.widths[position]
        row = self.members[width].index(position)
        usable = torch.isfinite(scale) & (scale > 0)
        self.get_buffer(f"mean_{width}")[row] = mean
        self.get_buffer(f"scale_{width}")[row] = torch.where(usable, scale, 1.0)

    def layer_weight(self, position: int) -> Tensor:
        """Return the weight ``[d, D]`` of one layer, a view of the stacked parameter."""
        width = self.widths[position]
        return cast(Tensor, self.weight[str(width)][self.members[width].index(position)])

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> Tensor:
        """Reduce all layers.

        Args:
            inputs: ``[N, ..., D]``, or a sequence of N tensors ``[..., D_n]``.

        Returns:
            ``[N, ..., d]``.

        Raises:
            ValueError: if the number of layers or a width differs from the constructor's.
        """
        self.check(inputs)
        if len(self.members) == 1:
            stacked = inputs if isinstance(inputs, Tensor) else torch.stack(tuple(inputs))
            return self._reduce(stacked, *self.affine())
        outputs: list[Tensor | None] = [None] * len(self.widths)
        for width, layers in self.members.items():
            stacked = torch.stack([inputs[position] for position in layers])
            reduced = self._reduce(stacked, *self.affine(width, layers))
            for position, output in zip(layers, reduced, strict=True):
                outputs[position] = output
        return torch.stack(cast(list[Tensor], outputs))

    def affine(
        self, width: int | None = None, layers: list[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weight ``[n, d, D]`` and bias ``[n, d]`` of the layers of one width (all, by default).

        Mean and scale are folded in.
        """
        width = self.widths[0] if width is None else width
        weight = self.weight[str(width)]
        bias = self.bias if layers is None else self.bias[layers]
        if self.standardize:
            weight = weight / self.get_buffer(f"scale_{width}")[:, None]
            bias = bias - (weight @ self.get_buffer(f"mean_{width}")[..., None])[..., 0]
        return weight, bias

    @staticmethod
    def _reduce(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if inputs.dtype != weight.dtype and not torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(weight.dtype)
        flat = inputs.flatten(1, -2)  # [n, T, D]
        output = torch.baddbmm(bias[:, None], flat, weight.transpose(1, 2))  # [n, T, d]
        return output.view(*inputs.shape[:-1], output.shape[-1])

    def check(self, inputs: Tensor | Sequence[Tensor]) -> None:
        """Raise a ValueError unless the states' number and widths are those of the constructor."""
        given = (
            (inputs.shape[-1],) * inputs.shape[0]
            if isinstance(inputs, Tensor)
            else tuple(state.shape[-1] for state in inputs)
        )
        if given != self.widths:
            raise ValueError(
                f"states of widths {list(given)} were given, but this side network was built for "
                f"{list(self.widths)}; select the taps it was trained on, in the same order"
            )


class StackedNorm(nn.Module):
    """One LayerNorm or BatchNorm per layer over states ``[N, ..., d]``.

    BatchNorm takes its statistics over all token positions, so it is meant for maps and
    fixed grids.

    Args:
        layers: N.
        width: d.
        kind: "layer" or "batch".
        eps: added to the variance.
        momentum: of the running statistics ("batch" only).
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, layers: int, width: int, *, kind: Norm = "layer", eps: float, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.kind, self.eps, self.momentum = kind, eps, momentum
        self.weight = nn.Parameter(torch.ones(layers, width))
        self.bias = nn.Parameter(torch.zeros(layers, width))
        if kind == "batch":
            self.register_buffer("running_mean", torch.zeros(layers, width))
            self.register_buffer("running_var", torch.ones(layers, width))
            self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, states: Tensor) -> Tensor:
        """Normalise ``[N, ..., d]``, each layer with its own statistics and affine map."""
        if self.kind == "batch":
            return self._batch(states)
        width = states.shape[-1:]
        # N fused norms: the backward of a broadcast affine map would cost four times as much
        return torch.stack(
            [
                F.layer_norm(state, width, weight, bias, self.eps)
                for state, weight, bias in zip(states, self.weight, self.bias, strict=True)
            ]
        )

    def _batch(self, states: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        layers, width = states.shape[0], states.shape[-1]
        # channels first: torch then sums each channel in double precision
        channels = states.flatten(1, -2).transpose(1, 2).reshape(1, layers * width, -1)
        output = F.batch_norm(
            channels,
            self.running_mean.view(-1),
            self.running_var.view(-1),
            self.weight.view(-1),
            self.bias.view(-1),
            self.training,
            self.momentum,
            self.eps,
        )
        output = output.view(layers, width, -1).transpose(1, 2)  # [N, T, d]
        return output.reshape(states.shape)


class Down(nn.Module):
    """Bring the states of N layers to the side width: ``norm(Linear(activation(x)))`` per layer.

    Args:
        widths: width of each layer, in order.
        side_width: d.
        activation: applied to the states before the Linear ("relu" in CLIP4Clip).
        norm: applied after the Linear.
        norm_eps: eps of the norm.
        input_norm: applied to the states first. "layer" = LayerNorm without parameters, one more
            pass over the states; "standard" = fixed per-feature statistics (see
            `StackedLinear.set_statistics`), folded into the weights.

    Raises:
        ValueError: if an option is unknown or contradicts another.
    """

    def __init__(
        self,
        widths: Sequence[int],
        side_width: int,
        *,
        activation: Activation = "none",
        norm: Norm = "layer",
        norm_eps: float = 1e-5,
        input_norm: InputNorm = "none",
    ) -> None:
        super().__init__()
        check_choice("down_activation", activation, Activation)
        check_choice("down_norm", norm, Norm)
        check_choice("input_norm", input_norm, InputNorm)
        if activation != "none" and input_norm == "standard":
            raise ValueError(
                "input_norm='standard' is folded into the Linear, so no activation can come "
                "between them; use input_norm='layer' or down_activation='none'"
            )
        self.activation, self.input_norm = activation, input_norm
        self.linear = StackedLinear(widths, side_width, standardize=input_norm == "standard")
        self.norm = (
            None
            if norm == "none"
            else StackedNorm(len(widths), side_width, kind=norm, eps=norm_eps)
        )

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> Tensor:
        """Reduce ``[N, ..., D]`` (or N tensors ``[..., D_n]``) to ``[N, ..., d]``."""
        if self._one_by_one(inputs):
            return self._reduce_each(inputs)
        if isinstance(inputs, Tensor):
            reduced = self.linear(self.prepare(inputs))
        else:
            reduced = self.linear([self.prepare(state) for state in inputs])
        return cast(Tensor, reduced if self.norm is None else self.norm(reduced))

    def _one_by_one(self, inputs: Tensor | Sequence[Tensor]) -> bool:
        """Whether `reduce_layers` applies: frozen states of one width and shape on a CPU."""
        simple = len(self.linear.members) == 1 and getattr(self.norm, "kind", None) != "batch"
        return (
            simple
            and cpu_type(self.linear.bias) is not None
            and len({state.shape for state in inputs}) == 1
            and not any(state.requires_grad for state in inputs)
        )

    def _reduce_each(self, inputs: Tensor | Sequence[Tensor]) -> Tensor:
        self.linear.check(inputs)
        norm, shape = self.norm, inputs[0].shape
        with torch.autocast("cpu", enabled=False):
            weight, bias = self.linear.affine()
        dtype = cpu_type(bias) or bias.dtype
        reduced = reduce_layers(
            [state.flatten(0, -2) for state in inputs],
            weight[None],
            bias[None],
            () if norm is None else (norm.weight[None], norm.bias[None]),
            eps=0.0 if norm is None else norm.eps,
            prepare=lambda state: self.prepare(state.to(dtype)).to(dtype),
        )
        return reduced.view(-1, *shape[:-1], reduced.shape[-1])

    def prepare(self, state: Tensor) -> Tensor:
        """Apply what comes before the Linear, input norm and activation, to ``[..., D]``."""
        if self.input_norm == "layer":
            state = F.layer_norm(state.to(self.linear.bias.dtype), state.shape[-1:])
        return F.relu(state) if self.activation == "relu" else state


class SingleNorm(StackedNorm):
    """The norm of a single layer, ``[..., d]``."""

    def __init__(self, width: int, *, kind: Norm, eps: float) -> None:
        super().__init__(1, width, kind=kind, eps=eps)

    def forward(self, states: Tensor) -> Tensor:
        """Normalise ``[..., d]``."""
        return super().forward(states[None])[0]


class Projection(nn.Sequential):
    """P, from d to d: "linear" = Linear + norm; "mlp" = Linear, ReLU, Linear + norm.

    Args:
        width: d.
        kind: "none" (identity), "linear" or "mlp".
        hidden: inner width of "mlp".
        norm: "layer", "batch" or "none".
        norm_eps: eps of the norm.
    """

    def __init__(
        self, width: int, *, kind: ProjectionKind, hidden: int, norm: Norm, norm_eps: float
    ) -> None:
        check_choice("projection", kind, ProjectionKind)
        check_choice("projection_norm", norm, Norm)
        parts: list[nn.Module] = []
        if kind == "linear":
            parts = [Linear(width, width)]
        elif kind == "mlp":
            parts = [Linear(width, hidden), nn.ReLU(), Linear(hidden, width)]
        if parts and norm != "none":
            parts.append(SingleNorm(width, kind=norm, eps=norm_eps))
        super().__init__(*parts)


class Up(nn.Sequential):
    """From the side width to the output width, ``[..., d] -> [..., E]``.

    Args:
        side_width: d.
        out_width: E.
        kind: "none" (identity), "linear", "relu_linear" or "relu_linear_norm" (MDETR).
        norm_eps: eps of the LayerNorm.
    """

    def __init__(self, side_width: int, out_width: int, *, kind: UpKind, norm_eps: float) -> None:
        check_choice("up", kind, UpKind)
        parts: list[nn.Module] = [nn.ReLU()] if kind.startswith("relu") else []
        if kind != "none":
            parts.append(Linear(side_width, out_width))
        if kind.endswith("norm"):
            parts.append(nn.LayerNorm(out_width, eps=norm_eps))
        super().__init__(*parts)
