"""Closed-form bases: whitening, and kernel regression against its textbook form."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unipt.bases import KernelDirection, KernelRegression, KernelRows, WhitenedMean


def rows(count: int = 40, width: int = 6) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, width) * torch.tensor([4.0, 2.0, 1.0, 1.0, 0.5, 0.25]) + 3.0


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_whitening_shrinks_the_spread_of_the_variances(whitening: float) -> None:
    base = WhitenedMean(6)
    base.fit(rows(400), whitening)
    found = base(rows(400))
    assert torch.allclose(found.mean(0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(found.square().sum(1).mean(), torch.ones(()), atol=0.02)
    before = torch.linalg.eigvalsh(torch.cov(rows(400).T))
    after = torch.linalg.eigvalsh(torch.cov(found.T))
    # floors of the variances bend the smallest ones a little
    assert torch.allclose(
        (after[-1] / after[0]).log(), (1 - whitening) * (before[-1] / before[0]).log(), atol=0.25
    )


def test_equal_rows_are_not_blown_up() -> None:
    base = WhitenedMean(6)
    states = torch.full((10, 6), 2.0) + 1e-4 * torch.randn(10, 6)
    base.fit(states, 0.5)
    assert base(states).norm(dim=1).max() < 0.1


def test_every_row_a_key_is_kernel_ridge_regression() -> None:
    features, wanted = rows().double(), torch.randn(40, 3).double()
    memory = KernelDirection(keys=40, width=6, out_width=3).double()
    memory.fit(KernelRows.of(features, torch.arange(40)), wanted, gamma=0.7, ridge=0.3)
    scaled = (features - features.mean(0)) / features.std(0, correction=0)
    fresh = (rows(8).double() + 0.3 - features.mean(0)) / features.std(0, correction=0)
    among, given = (
        torch.exp(-0.7 / 6 * torch.cdist(some, scaled).square()) for some in (scaled, fresh)
    )
    expected = given @ torch.linalg.solve(among + 0.3 * torch.eye(40), wanted)
    found = memory(rows(8).double() + 0.3)
    assert torch.allclose(found, F.normalize(expected, dim=1), atol=1e-4)


def test_fewer_keys_approximate_all() -> None:
    features, wanted = rows(200), torch.tanh(rows(200)[:, :3] - 3.0)
    whole, part = (KernelDirection(keys=keys, width=6, out_width=3) for keys in (200, 60))
    for memory in (whole, part):
        memory.fit(KernelRows.of(features, torch.arange(len(memory.keys))), wanted)
    cosine = (whole(features) * part(features)).sum(1)
    assert cosine.median() > 0.98


def test_a_constant_feature_does_not_count() -> None:
    features = torch.cat((rows(), torch.full((40, 1), 5.0)), 1)
    memory = KernelDirection(keys=40, width=7, out_width=2)
    memory.fit(KernelRows.of(features, torch.arange(40)), torch.randn(40, 2))
    assert torch.isfinite(memory(features)).all()


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="of at least 1"):
        KernelDirection(keys=0, width=3, out_width=2)


def test_weights_solve_the_weighted_normal_equations() -> None:
    features, wanted = rows().double(), torch.randn(40, 2).double()
    weights, keys = torch.rand(40).double() + 0.1, torch.arange(0, 40, 4)
    memory = KernelRegression(keys=10, width=6, out_width=2).double()
    memory.fit(KernelRows.of(features, keys), wanted, gamma=0.7, ridge=0.3, weights=weights)
    scaled = (features - features.mean(0)) / features.std(0, correction=0)
    between = torch.exp(-0.7 / 6 * torch.cdist(scaled, scaled[keys]).square())
    slope = between.T @ (weights[:, None] * (between @ memory.values - wanted))
    rest = slope + 0.3 * between[keys] @ memory.values  # half the gradient, 0 at the minimum
    assert rest.abs().max() < 1e-5
    assert slope.abs().max() > 0.1
    assert torch.allclose(memory(features), between @ memory.values, atol=1e-8)


def test_a_kernel_regression_is_silent_far_from_its_rows() -> None:
    memory = KernelRegression(keys=40, width=6, out_width=1)
    memory.fit(KernelRows.of(rows(), torch.arange(40)), torch.ones(40, 1))
    assert memory(rows()).min() > 0.5
    assert memory(rows() + 100).abs().max() < 1e-6
