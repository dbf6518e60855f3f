"""What a side network's output is added to: closed-form models that little data cannot undo.

Legend: B samples, M keys, F features (the mean of every layer, concatenated), E embedding width or
outputs. `WhitenedMean` keeps what a sentence encoder knows of likeness; `KernelRegression` predicts
from the training rows, and `KernelDirection` is its direction. All are fitted once; nothing in them
is trained.
Price: [B, E] x [E, E]; [B, F] x [F, M] and [B, M] x [M, E], and M (F + E) numbers kept. A fit on n
rows is [n, F] x [F, M] once (`KernelRows`), then [M, n] x [n, M] and a system of [M, M] for each
gamma and ridge.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["KernelDirection", "KernelRegression", "WhitenedMean"]


class WhitenedMean(nn.Module):
    """The mean of the anchor's tokens, centred and partly whitened: ``(x - center) W``.

    Args:
        width: E, of the anchor and of the embedding.
    """

    center: Tensor
    transform: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("transform", torch.eye(width))

    def forward(self, features: Tensor) -> Tensor:
        """Return the bases of anchor means ``[B, E]``, ``[B, E]``, of about length 1."""
        return (features.to(self.center.dtype) - self.center) @ self.transform

    @torch.no_grad()
    def fit(self, features: Tensor, whitening: float = 0.0) -> None:
        """Set centre and transform from the anchor means of the training rows.

        Args:
            features: ``[n, E]``.
            whitening: a principal direction of variance v is scaled by ``v^(-whitening / 2)``: 0
                leaves the directions' shares as they are, 1 makes them equal. A variance counts as
                that of rounding at least, a hundredth of the centre's length, so that rounding is
                not blown up.
        """
        rows = features.double()
        center = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - center).T @ (rows - center) / len(rows))
        least = (1e-4 * center.square().sum() / len(center)).clamp_min(1e-12)
        values = values.clamp_min(0) + 1e-3 * values.clamp_min(0).mean() + least
        factors = values ** (-whitening / 2)
        factors = factors / (values * factors.square()).sum().sqrt()  # mean square length 1
        self.center.copy_(center)
        self.transform.copy_(vectors * factors @ vectors.T)


class KernelRows(NamedTuple):
    """Rows that kernel regressions are fitted on: what no gamma, ridge or target changes."""

    mean: Tensor
    """``[F]``."""
    scale: Tensor
    """``[F]``, the deviations; of a feature that is nearly constant, the mean of all."""
    keys: Tensor
    """The rows kept as keys, in units of deviation, ``[M, F]``."""
    places: Tensor
    """Which rows these are, ``LongTensor [M]``."""
    distances: Tensor
    """Mean squared difference of each row and each key, over the F features, ``[n, M]``."""

    @classmethod
    @torch.no_grad()
    def of(cls, features: Tensor, places: Tensor) -> KernelRows:
        """Measure rows of features, in float64.

        Args:
            features: ``[n, F]``.
            places: ``LongTensor [M]``, the rows to keep as keys.
        """
        mean, scale = features.double().mean(0), features.double().std(0, correction=0)
        scale = torch.where(scale > 1e-3 * scale.mean(), scale, scale.mean().clamp_min(1e-6))
        rows = (features.double() - mean) / scale
        return cls(mean, scale, rows[places], places, distances(rows, rows[places]))

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(part.nbytes for part in self)


class KernelRegression(nn.Module):
    """Kernel ridge regression on M of the training rows: ``sum_m exp(-g |x' - k_m|^2 / F) v_m``.

    ``x' = (x - mean) / scale``. Far from all keys it is 0.

    Args:
        keys: M.
        width: F.
        out_width: E.

    Raises:
        ValueError: if a size is not positive.
    """

    mean: Tensor
    scale: Tensor
    keys: Tensor
    values: Tensor
    gamma: Tensor

    def __init__(self, *, keys: int, width: int, out_width: int) -> None:
        super().__init__()
        if min(keys, width, out_width) < 1:
            raise ValueError(
                f"a kernel regression needs keys, width and out_width of at least 1, got {keys}, "
                f"{width} and {out_width}"
            )
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("keys", torch.zeros(keys, width))
        self.register_buffer("values", torch.zeros(keys, out_width))
        self.register_buffer("gamma", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """Return the predictions of features ``[B, F]``, ``[B, E]``."""
        return torch.exp(-self.gamma * distances(self.scaled(features), self.keys)) @ self.values

    def scaled(self, features: Tensor) -> Tensor:
        """Return features ``[B, F]`` in the keys' units."""
        return (features.to(self.keys.dtype) - self.mean) / self.scale

    @torch.no_grad()
    def fit(
        self,
        rows: KernelRows,
        wanted: Tensor,
        *,
        gamma: float = 1.0,
        ridge: float = 0.3,
        weights: Tensor | None = None,
    ) -> None:
        """Set keys and coefficients by regularised least squares over all rows.

        ``min_V |W^(1/2) (K_nm V - Y)|^2 + ridge tr(V^T K_mm V)``: kernel ridge regression
        if every row is a key, else its Nystroem approximation. Computed in float64.

        Args:
            rows: n of them, M being keys.
            wanted: Y, what the rows should be mapped to, ``[n, E]``.
            gamma: g, the inverse square of the kernel's width, in units of one feature's
                deviation.
            ridge: the weight of the penalty.
            weights: W, how much each row counts, ``[n]``; 1 by default.
        """
        between = torch.exp(-gamma * rows.distances)  # [n, M]
        among = between[rows.places]  # [M, M]
        weighted = between if weights is None else between * weights.double()[:, None]
        left = weighted.T @ between + ridge * among
        left.diagonal().add_(1e-8 * left.diagonal().mean())
        values = torch.linalg.solve(left, weighted.T @ wanted.double())
        self.mean.copy_(rows.mean)
        self.scale.copy_(rows.scale)
        self.keys.copy_(rows.keys)
        self.values.copy_(values)
        self.gamma.fill_(gamma)


class KernelDirection(KernelRegression):
    """The direction of a kernel regression on the training rows, as attention over M of them.

        w = softmax_m(2 g/F x' k_m - g/F |k_m|^2)      y = w V

    Up to a positive factor a sample this is `KernelRegression`: the direction, all that a cosine
    sees, is equal. Tip-Adapter (arXiv 2207.09519) has this form, with the training samples as keys.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return the bases of features ``[B, F]``, ``[B, E]``, of length 1."""
        rate = self.gamma / features.shape[-1]
        lengths = self.keys.square().sum(-1)  # [M]
        scores = 2 * self.scaled(features) @ self.keys.T - lengths
        return F.normalize(torch.softmax(rate * scores, -1) @ self.values, dim=-1)


def distances(rows: Tensor, keys: Tensor) -> Tensor:
    """Return ``|x - k|^2 / F`` of ``[n, F]`` and ``[M, F]``, ``[n, M]``."""
    squared = rows.square().sum(1)[:, None] + keys.square().sum(1) - 2 * rows @ keys.T
    return squared.clamp_min(0) / rows.shape[1]
