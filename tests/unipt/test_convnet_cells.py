"""The pooling of cells of maps: its equation, standardised maps, maps in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unipt import ConvSideNetwork
from unipt.convnet import MapNorm, pool_cells

GRID, CELL, WIDTH = (2, 3), (4, 2), 5


def by_equation(guide: Tensor, stage: Tensor) -> Tensor:
    """``sum over the cell of (l1(relu(sum_c g h)) + 1 / k) h``, the guide upsampled."""
    (rows, columns), (high, wide) = GRID, CELL
    upsampled = guide.permute(0, 3, 1, 2).repeat_interleave(high, 2).repeat_interleave(wide, 3)
    scores = F.relu((upsampled * stage).sum(1))  # [B, kh H, kw W]
    sums = F.avg_pool2d(scores[:, None], CELL) * high * wide  # [B, 1, H, W]
    total = sums.repeat_interleave(high, 2).repeat_interleave(wide, 3)[:, 0]
    weights = scores / (total + 1e-8) + 1 / (high * wide)
    pooled = F.avg_pool2d(stage * weights[:, None], CELL) * high * wide  # [B, C, H, W]
    return pooled.flatten(2).transpose(1, 2).reshape(len(guide), rows * columns, WIDTH)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    guide = torch.randn(3, *GRID, WIDTH, generator=generator, dtype=torch.float64)
    sides = [cells * size for cells, size in zip(GRID, CELL, strict=True)]
    stage = torch.randn(3, WIDTH, *sides, generator=generator, dtype=torch.float64)
    return guide.requires_grad_(), stage


@pytest.mark.parametrize("standardised", [False, True])
def test_values_and_gradients_are_those_of_the_equation(standardised: bool) -> None:
    guide, stage = inputs()
    mean, scale = torch.linspace(-1, 2, WIDTH).double(), torch.linspace(0.5, 3, WIDTH).double()
    given = {"mean": mean, "scale": scale} if standardised else {}
    scaled = (stage - mean[:, None, None]) / scale[:, None, None] if standardised else stage
    pooled = pool_cells(guide, stage, eps=1e-8, eps_mode="add", **given)
    wanted = by_equation(guide, scaled)
    torch.testing.assert_close(pooled, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(pooled.square().sum(), guide),
        torch.autograd.grad(wanted.square().sum(), guide),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_cell_without_likeness_is_its_mean() -> None:
    guide, stage = inputs()
    pooled = pool_cells(torch.zeros_like(guide), stage, eps=1e-8, eps_mode="add")
    torch.testing.assert_close(pooled, F.avg_pool2d(stage, CELL).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("norm", ["none", "standard"])
def test_maps_in_half_precision_need_no_cast(norm: MapNorm) -> None:
    torch.manual_seed(0)
    network = ConvSideNetwork(
        widths=(WIDTH,), anchor_width=6, side_width=4, out_width=8, input_norm=norm
    )
    stage, anchor = inputs()[1].half(), torch.randn(3, 6, *GRID).half()
    if norm == "standard":
        network.set_statistics(0, torch.linspace(-1, 2, WIDTH), torch.linspace(0.5, 3, WIDTH))
    cast = network(anchor.float(), [stage.float()])
    assert torch.equal(network(anchor, [stage]).features, cast.features)
