"""Losses of the published systems that are no part of torch. Price: one [B, B] score matrix."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .layers import check_choice

__all__ = ["Negatives", "hinge_loss"]

Negatives = Literal["hardest", "all"]


def hinge_loss(
    images: Tensor, captions: Tensor, *, margin: float = 0.2, negatives: Negatives = "hardest"
) -> Tensor:
    """Triplet hinge loss over a batch of matching pairs (VSE++, arXiv 1707.05612).

    ``sum [margin - s(i, c) + s(i, c')]_+ + [margin - s(i, c) + s(i', c)]_+``, over all negatives or
    over the hardest one of each row and column.

    Args:
        images: ``[B, D]``, L2-normalised; row b matches row b of ``captions``.
        captions: ``[B, D]``, L2-normalised.
        margin: in units of cosine similarity.
        negatives: "hardest" or "all".

    Returns:
        The sum over the batch, a scalar.

    Raises:
        ValueError: if ``negatives`` is unknown or the shapes differ.
    """
    check_choice("negatives", negatives, Negatives)
    if images.shape != captions.shape:
        raise ValueError(
            f"images {list(images.shape)} and captions {list(captions.shape)} must be paired rows"
        )
    scores = images @ captions.T  # [B, B]
    matching = scores.diagonal()
    same = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    to_caption = (margin + scores - matching[:, None]).clamp_min(0).masked_fill(same, 0)
    to_image = (margin + scores - matching[None]).clamp_min(0).masked_fill(same, 0)
    if negatives == "hardest":
        return to_caption.amax(1).sum() + to_image.amax(0).sum()
    return to_caption.sum() + to_image.sum()
