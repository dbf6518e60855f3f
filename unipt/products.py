"""Matrix products of side networks on a CPU: oneDNN's own kernels where they are faster.

Legend: R rows (tokens), I inputs, O outputs.

torch sends float32 products to MKL, which on processors of other makers leaves the wide vectors
unused: 100 GFLOP/s on one core of a Zen 5, where oneDNN has 215 (bfloat16: 430). oneDNN compiles a
kernel for each shape (half a millisecond), so it gets a multiple of 64 rows, and the rest, as well
as products too small to gain, go the usual way. Everything else than a CPU, and every trace, takes
torch's own operations.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Linear", "cpu_type", "inner_product", "linear", "outer_product"]

ROWS = 64
"""Rows that a compiled kernel takes: a multiple of these."""
LEAST = 2**21
"""Multiplications below which a call costs more than it saves."""


def cpu_type(weight: Tensor) -> torch.dtype | None:
    """Type of the products where hand-written steps for a CPU apply, None where they do not.

    The weight's own type; bfloat16 under autocast, with sums and everything else in float32. On
    other devices, in a trace, and under autocast to float16, torch's own operations are right.
    """
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    if weight.device.type != "cpu" or traced:
        return None
    if not torch.is_autocast_enabled("cpu"):
        return weight.dtype
    low, full = torch.bfloat16, torch.float32
    return low if torch.get_autocast_dtype("cpu") == low and weight.dtype == full else None


def inner_product(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` without gradients: ``[R, I]`` and ``[O, I]`` to ``[R, O]``.

    With bfloat16 values (and weight) the result, and the bias, are float32.
    """
    low = values.dtype == torch.bfloat16
    rows = _compiled_rows(values.shape[0], weight)
    if rows == 0:
        return _usual(values, weight, bias)
    if low:
        head = torch.mm(values[:rows], weight.T).float()
        head = head if bias is None else head.add_(bias)
    else:
        head = _onednn(values[:rows], weight, bias)
    if rows == values.shape[0]:
        return head
    return torch.cat((head, _usual(values[rows:], weight, bias)))


def outer_product(left: Tensor, right: Tensor) -> Tensor:
    """``g^T x`` without gradients, as a weight's gradient: ``[R, O]`` and ``[R, I]`` to ``[O, I]``.

    With bfloat16 factors the result is float32.
    """
    rows = _compiled_rows(left.shape[0], left[:1].T.expand(-1, right.shape[1]))
    if rows == 0:
        return _usual(left.T, right.T, None)
    if left.dtype == torch.bfloat16:
        head = torch.mm(left[:rows].T, right[:rows]).float()
    else:
        head = _onednn(left[:rows].T, right[:rows].T, None)
    if rows < left.shape[0]:
        head.addmm_(left[rows:].T.to(head.dtype), right[rows:].to(head.dtype))
    return head


def _compiled_rows(rows: int, weight: Tensor) -> int:
    """How many of `rows` a compiled kernel takes, 0 if none may."""
    rows -= rows % ROWS
    if rows * weight.numel() < LEAST or weight.device.type != "cpu":
        return 0
    if weight.dtype == torch.float32:
        return rows if _AVAILABLE else 0
    return rows if weight.dtype == torch.bfloat16 else 0


def _usual(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if values.dtype == torch.bfloat16:  # products of bfloat16 numbers are exact in float32
        values, weight = values.float(), weight.float()
    if bias is None:
        return torch.mm(values, weight.T)
    return torch.addmm(bias, values, weight.T)


def _onednn(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return cast(Tensor, product)


def _available() -> bool:
    present: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return present and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_AVAILABLE = _available()


class _Linear(torch.autograd.Function):
    """`inner_product` with gradients; its products are of `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> Tensor:
        values, weight = values.to(dtype), weight.to(dtype)
        ctx.save_for_backward(values, weight)
        return inner_product(values, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (values, weight), wanted = grads, ctx.saved_tensors, ctx.needs_input_grad
        low = grad.to(weight.dtype)
        return (
            inner_product(low, weight.T) if wanted[0] else None,
            outer_product(low, values) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
            None,
        )


class Linear(nn.Linear):
    """torch.nn.Linear, over many rows, by the fastest products at hand."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Map ``[..., I]`` to ``[..., O]``."""
        return linear(input, self.weight, self.bias)


def linear(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x W^T + b`` over the last dimension, ``[..., I]`` to ``[..., O]``."""
    dtype = cpu_type(weight)
    rows = values.reshape(-1, values.shape[-1])
    if dtype is None or values.dtype != weight.dtype or not _compiled_rows(len(rows), weight):
        return F.linear(values, weight, bias)
    with torch.autocast("cpu", enabled=False):
        output = cast(Tensor, _Linear.apply(rows, weight, bias, dtype))  # type: ignore[no-untyped-call]
    return output.view(*values.shape[:-1], weight.shape[0])
