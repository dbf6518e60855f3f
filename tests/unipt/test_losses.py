"""Losses over pairs against hand-worked sums; pairs that match too are no negatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from unipt import contrastive_loss, hinge_loss


def pairs(rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    images, captions = (torch.randn(rows, 3, generator=generator) for _ in range(2))
    return F.normalize(images, dim=-1), F.normalize(captions, dim=-1)


def test_contrastive_loss_by_hand() -> None:
    images, captions = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    scores = [[2.0, 1.2], [0.0, 1.6]]  # scale 2
    rows = [math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(scores)]
    columns = [math.log(sum(math.exp(row[i]) for row in scores)) - scores[i][i] for i in range(2)]
    wanted = (sum(rows) / 2 + sum(columns) / 2) / 2
    assert contrastive_loss(images, captions, 2.0).item() == pytest.approx(wanted)


def test_pairs_that_match_too_are_no_negatives() -> None:
    """Ignoring the others of an equal image is as if they were not in its row."""
    images, captions = pairs()
    images[1] = images[0]  # rows 0 and 1 are captions of one image
    ignore = torch.zeros(4, 4, dtype=torch.bool)
    ignore[:2, :2] = True
    scores = 5.0 * images @ captions.T
    kept = scores.clone()
    kept[0, 1] = kept[1, 0] = -torch.inf
    target = torch.arange(4)
    wanted = (F.cross_entropy(kept, target) + F.cross_entropy(kept.T, target)) / 2
    assert contrastive_loss(images, captions, 5.0, ignore=ignore) == pytest.approx(wanted)
    for negatives in ("hardest", "all"):
        plain = hinge_loss(images, captions, margin=2.0, negatives=negatives)
        loss = hinge_loss(images, captions, margin=2.0, negatives=negatives, ignore=ignore)
        assert 0 < loss < plain
    cost = (2.0 + images @ captions.T - (images * captions).sum(1)[:, None]).clamp_min(0)
    down = (2.0 + images @ captions.T - (images * captions).sum(1)).clamp_min(0)
    off = ~(ignore | torch.eye(4, dtype=torch.bool))
    assert loss.item() == pytest.approx((cost[off].sum() + down[off].sum()).item())


def test_the_gradient_of_an_ignored_pair_is_zero() -> None:
    images, captions = pairs(2)
    captions.requires_grad_()
    ignore = torch.ones(2, 2, dtype=torch.bool)
    contrastive_loss(images, captions, 10.0, ignore=ignore).backward()
    assert torch.equal(captions.grad, torch.zeros_like(captions))


def test_unpaired_rows_are_refused() -> None:
    images, captions = pairs()
    for loss in (
        lambda: hinge_loss(images, captions[:3]),
        lambda: contrastive_loss(images, captions[:3], 1.0),
    ):
        with pytest.raises(ValueError, match="must be paired rows"):
            loss()
