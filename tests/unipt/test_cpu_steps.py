"""The steps written for a CPU: their values are torch's, their gradients pass gradcheck."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from unipt.interaction import EpsMode, aggregate, masked_mean, residual_rows
from unipt.interaction_groups import aggregate_groups
from unipt.layers import Down, Up
from unipt.packed import lengths_to_offsets, segment_max
from unipt.products import _Linear, inner_product, linear, outer_product
from unipt.reduction import reduce_layers

SIZES = ((2, 1), (1, 3), (2, 4))
"""Samples and tokens each of the groups of a batch."""


def draw(*shape: int, dtype: torch.dtype = torch.float64, grad: bool = True) -> Tensor:
    generator = Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad)


@pytest.mark.parametrize("rows", [1, 64, 130, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_any_number_of_rows(rows: int, dtype: torch.dtype) -> None:
    x, g = (draw(rows, n, dtype=torch.float32, grad=False).to(dtype) for n in (512, 128))
    weight = draw(128, 512, dtype=torch.float32, grad=False).to(dtype)
    bias = draw(128, dtype=torch.float32, grad=False)
    exact = x.double() @ weight.double().T + bias
    rtol, atol = (1e-4, 1e-3) if dtype == torch.float32 else (0.01, 0.3)
    torch.testing.assert_close(inner_product(x, weight, bias).double(), exact, rtol=rtol, atol=atol)
    exact = g.double().T @ x.double()
    assert outer_product(g, x).dtype == torch.float32
    torch.testing.assert_close(outer_product(g, x).double(), exact, rtol=rtol, atol=atol)


def test_linear_is_torchs_own() -> None:
    x, weight = draw(3, 100, 256, dtype=torch.float32), draw(96, 256, dtype=torch.float32)
    bias = draw(96, dtype=torch.float32)
    results = []
    for function in (linear, F.linear):
        output = function(x, weight, bias)
        results.append((output, *torch.autograd.grad(output.sin().sum(), (x, weight, bias))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)
    small = (draw(5, 4), draw(3, 4), draw(3))
    assert gradcheck(lambda *given: _Linear.apply(*given, torch.float64), small)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("normed", [False, True])
def test_gradients_of_the_reduction(normed: bool) -> None:
    states = [draw(7, 4, grad=False), draw(7, 4, grad=False) + 1]
    norm = (draw(2, 2, 3), draw(2, 2, 3)) if normed else ()

    def reduce(*given: Tensor) -> Tensor:
        return reduce_layers(states, given[0], given[1], given[2:], eps=1e-3)

    given = (draw(2, 2, 3, 4), draw(2, 2, 3), *norm)  # [models, layers, ...]
    assert gradcheck(reduce, given)
    together = reduce(*given)
    for model in range(2):
        alone = reduce(*(value[model : model + 1] for value in given))
        torch.testing.assert_close(together[model], alone[0])


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"input_norm": "layer"}])
def test_states_that_need_a_gradient_get_one(options: dict[str, Any]) -> None:
    down = Down([6, 6], 4, **options)
    states = draw(2, 5, 6, dtype=torch.float32)
    wanted = down(states)
    (grad,) = torch.autograd.grad(wanted.square().sum(), states)
    assert grad.abs().sum() > 0
    torch.testing.assert_close(down(states.detach()), wanted)


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize(("eps_mode", "eps"), [("add", 1e-8), ("clamp", 0.5)])
def test_groups_are_aggregated_as_one_by_one(identity: bool, eps_mode: EpsMode, eps: float) -> None:
    layers, width, tokens = 3, 5, sum(count * length for count, length in SIZES)
    given = draw(tokens, width), draw(layers * tokens, width), draw(width), draw(1)

    def together(*given: Tensor) -> tuple[Tensor, Tensor]:
        return aggregate_groups(
            *given, sizes=SIZES, layers=layers, identity=identity, eps=eps, eps_mode=eps_mode
        )

    assert gradcheck(together, given)
    anchor, targets, gate, bias = given
    mixed, trust = together(*given)
    row = sample = 0
    for count, length in SIZES:
        size = count * length
        a = anchor[row : row + size].view(count, length, width)
        t = targets[layers * row : layers * (row + size)].view(count, layers, length, width)
        residual = residual_rows("identity", a, length, bias) if identity else None
        expected, confidence = aggregate(
            a,
            t,
            masked_mean(a, None) * gate,
            bias,
            mask=None,
            residual=residual,
            eps=eps,
            eps_mode=eps_mode,
        )
        torch.testing.assert_close(mixed[row : row + size], expected.flatten(0, 1))
        torch.testing.assert_close(trust[sample : sample + count], confidence[:, 0])
        row, sample = row + size, sample + count


def test_equal_largest_values_share_the_gradient() -> None:
    offsets = lengths_to_offsets(torch.tensor([2, 1, 3]))
    values = draw(6, 4)
    assert gradcheck(lambda given: segment_max(given, offsets), (values,))
    equal = torch.ones(6, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(segment_max(equal, offsets).sum(), equal)
    shares = torch.tensor([1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3])
    torch.testing.assert_close(grad, shares[:, None].expand(-1, 2))


def test_autocast_keeps_sums_in_float32() -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([Down([256, 256], 64), Up(64, 256, kind="linear", norm_eps=1e-5)])
    states = draw(2, 300, 256, dtype=torch.float32, grad=False)
    exact = net[1](net[0](states))
    with torch.autocast("cpu", torch.bfloat16):
        output = net[1](net[0](states))
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, exact, rtol=0.05, atol=0.05)
    grads = torch.autograd.grad(output.sum(), list(net.parameters()))
    assert all(grad.isfinite().all() for grad in grads)
