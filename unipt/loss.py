"""Losses of the published systems that are no part of torch. Price: one [B, B] score matrix."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .layers import check_choice

__all__ = ["Negatives", "contrastive_loss", "hinge_loss"]

Negatives = Literal["hardest", "all"]


def hinge_loss(
    images: Tensor,
    captions: Tensor,
    *,
    margin: float = 0.2,
    negatives: Negatives = "hardest",
    ignore: Tensor | None = None,
) -> Tensor:
    """Triplet hinge loss over a batch of matching pairs (VSE++, arXiv 1707.05612).

    ``sum [margin - s(i, c) + s(i, c')]_+ + [margin - s(i, c) + s(i', c)]_+``, over all negatives or
    over the hardest one of each row and column.

    Args:
        images: ``[B, D]``, L2-normalised; row b matches row b of ``captions``.
        captions: ``[B, D]``, L2-normalised.
        margin: in units of cosine similarity.
        negatives: "hardest" or "all".
        ignore: ``[B, B]`` (bool), pairs of image row and caption column that also match and so
            are no negatives; the diagonal is never one.

    Returns:
        The sum over the batch, a scalar.

    Raises:
        ValueError: if ``negatives`` is unknown or the shapes differ.
    """
    check_choice("negatives", negatives, Negatives)
    check_pairs(images, captions)
    scores = images @ captions.T  # [B, B]
    matching = scores.diagonal()
    same = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    if ignore is not None:
        same = same | ignore
    to_caption = (margin + scores - matching[:, None]).clamp_min(0).masked_fill(same, 0)
    to_image = (margin + scores - matching[None]).clamp_min(0).masked_fill(same, 0)
    if negatives == "hardest":
        return to_caption.amax(1).sum() + to_image.amax(0).sum()
    return to_caption.sum() + to_image.sum()


def contrastive_loss(
    images: Tensor, captions: Tensor, scale: Tensor | float, *, ignore: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE over a batch of matching pairs (CLIP, arXiv 2103.00020).

    The mean of the cross-entropies of ``scale * s`` over its rows and over its columns.

    Args:
        images: ``[B, D]``, L2-normalised; row b matches row b of ``captions``.
        captions: ``[B, D]``, L2-normalised.
        scale: inverse temperature.
        ignore: as in `hinge_loss`.

    Returns:
        The mean over the batch and both directions, a scalar.

    Raises:
        ValueError: if the shapes differ.
    """
    check_pairs(images, captions)
    scores = scale * (images @ captions.T)  # [B, B]
    matching = torch.arange(len(scores), device=scores.device)
    if ignore is not None:
        others = ignore & (matching[:, None] != matching)
        scores = scores.masked_fill(others, -torch.inf)
    return (F.cross_entropy(scores, matching) + F.cross_entropy(scores.T, matching)) / 2


def check_pairs(images: Tensor, captions: Tensor) -> None:
    """Raise a ValueError unless images and captions ``[B, D]`` are paired rows."""
    if images.shape != captions.shape:
        raise ValueError(
            f"images {list(images.shape)} and captions {list(captions.shape)} must be paired rows"
        )
