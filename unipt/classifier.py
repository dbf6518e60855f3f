"""SideClassifier: side network, pooling over tokens and a head for classification or regression.

Legend: B examples, S segments (1: a sentence or joint pair, 2: two sentences encoded separately),
L tokens (padded), T valid tokens (packed), N targets, E features, P pooled width, M keys,
F features of the memory (the mean of every layer, concatenated).
Price: the side network's GEMMs; pooling and head are below a hundredth of it. A memory costs
[B, F] x [F, M].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from .bases import KernelRegression
from .config import SideNetworkConfig
from .layers import check_choice
from .packed import segment_mean
from .pooling import TokenPooling, TokenPoolingKind

__all__ = ["Prediction", "SideClassifier"]


class Prediction(NamedTuple):
    """What a `SideClassifier` returns."""

    logits: Tensor
    """``[B, num_outputs]``."""
    confidence: Tensor
    """How much each target layer counts for each example, ``[B, N]``; the mean over segments."""


class SideClassifier(nn.Module):
    """A trainable classifier or regressor over the recorded states of a frozen model.

    The last state given is the anchor, the others are the targets. Two segments are combined as
    ``(u, v, |u - v|, u * v)``.

    Args:
        side: the side network's options; ``anchor`` must be "tokens".
        num_outputs: classes, or 1 for regression.
        pooling: over the valid tokens, see `TokenPooling`.
        dropout: probability on the pooled vector and on the hidden layer.
        segments: 1 or 2.
        norm: LayerNorm on the pooled vector.
        hidden: width of a hidden layer (GELU) before the output; 0 for a linear head.
        memory: keys of a `KernelRegression` on the means of all layers, whose outputs are added to
            the head's; 0 for none. It is fitted, not trained.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self,
        *,
        side: SideNetworkConfig,
        num_outputs: int,
        pooling: TokenPoolingKind = "meanmax",
        dropout: float = 0.1,
        segments: int = 1,
        norm: bool = True,
        hidden: int = 0,
        memory: int = 0,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, TokenPoolingKind)
        if segments not in (1, 2):
            raise ValueError(f"segments={segments} is not supported; use 1 or 2")
        if num_outputs < 1:
            raise ValueError(f"num_outputs={num_outputs}; give the number of classes, or 1")
        if side.anchor != "tokens":
            raise ValueError("SideClassifier needs a side network with anchor='tokens'")
        self.config: dict[str, Any] = {
            "side": side.to_dict(),
            "num_outputs": num_outputs,
            "pooling": pooling,
            "dropout": dropout,
            "segments": segments,
            "norm": norm,
            "hidden": hidden,
            "memory": memory,
        }
        self.segments = segments
        self.side = side.build()
        self.pooling = TokenPooling(self.side.out_width, kind=pooling)
        pooled = self.pooling.out_width
        width = pooled if segments == 1 else 4 * pooled
        self.norm = nn.LayerNorm(pooled) if norm else nn.Identity()
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        if hidden:
            layers += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)]
        layers.append(nn.Linear(hidden or width, num_outputs))
        self.head = nn.Sequential(*layers)
        self.pooled_width = pooled
        features = (sum(side.widths) + side.anchor_width) * (1 if segments == 1 else 4)
        self.memory = (
            KernelRegression(keys=memory, width=features, out_width=num_outputs) if memory else None
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a `config` dict, with freshly initialised parameters."""
        options = dict(config)
        return cls(side=SideNetworkConfig.from_dict(options.pop("side")), **options)

    def forward(
        self, states: Tensor, mask: Tensor | None = None, offsets: Tensor | None = None
    ) -> Prediction:
        """Predict from recorded states, padded or packed.

        Args:
            states: ``[N + 1, S B, L, D]`` padded or ``[N + 1, T, D]`` packed; the last is the
                anchor. With two segments all first sentences come before all second ones.
            mask: ``[S B, L]``, true at valid tokens (padded only; None if all are).
            offsets: ``LongTensor [S B + 1]`` (packed only).

        Raises:
            ValueError: if the shapes do not fit the options or each other.
        """
        pooled, confidence = self.pool(states, mask=mask, offsets=offsets)
        if self.segments == 1:
            return self.classify((pooled,), (confidence,))
        return self.classify(halves(pooled), halves(confidence))

    def pool(
        self, states: Tensor, mask: Tensor | None = None, offsets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the pooled, normed vector ``[B, P]`` and the confidence ``[B, N]`` of each row.

        With a memory the vector is ``[B, P + F]``, with the layers' means behind.
        The first half of `forward`; arguments as there. With `classify` it lets two segments of
        different padding go in one after the other. Trace two segments that way: torch.export ties
        a trace of `forward` on ``2 B`` rows to ``B > 1``.
        """
        expected = 3 if offsets is not None else 4
        if states.dim() != expected:
            raise ValueError(
                f"states have shape {list(states.shape)}; give [taps, B, L, D] with a mask, "
                "or packed [taps, T, D] with offsets"
            )
        side = self.side(states[-1], states[:-1], mask=mask, offsets=offsets)
        pooled = self.norm(self.pooling(side.features, mask=mask, offsets=offsets))
        if self.memory is not None:
            pooled = torch.cat((pooled, layer_means(states, mask=mask, offsets=offsets)), -1)
        return pooled, side.confidence

    def classify(self, pooled: Sequence[Tensor], confidence: Sequence[Tensor]) -> Prediction:
        """Combine one `pool` result per segment, vector and confidence, and predict.

        Raises:
            ValueError: if the number of segments is not this classifier's.
        """
        if len(pooled) != self.segments:
            raise ValueError(f"{len(pooled)} segments were given, expected {self.segments}")
        logits = self.head(_joined([vector[:, : self.pooled_width] for vector in pooled]))
        if self.memory is not None:
            means = [vector[:, self.pooled_width :] for vector in pooled]
            logits = logits + self.memory(_joined(means)).to(logits.dtype)
        return Prediction(logits, torch.stack(tuple(confidence)).mean(0))


def layer_means(
    states: Tensor, mask: Tensor | None = None, offsets: Tensor | None = None
) -> Tensor:
    """Return the float32 mean over valid tokens of every layer, joined, ``[B, (N + 1) D]``.

    Args:
        states: ``[N + 1, B, L, D]`` padded or ``[N + 1, T, D]`` packed.
        mask: ``[B, L]``, true at valid tokens (padded only; None if all are).
        offsets: ``LongTensor [B + 1]`` (packed only).
    """
    if offsets is not None:
        return torch.cat([segment_mean(tap.float(), offsets) for tap in states], -1)
    if mask is None:
        return states.float().mean(2).transpose(0, 1).flatten(1)
    valid = mask[..., None].float()  # [B, L, 1]
    means = (states * valid).sum(2) / valid.sum(1)  # [N + 1, B, D]
    return means.transpose(0, 1).flatten(1)


def _joined(vectors: Sequence[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else combine_segments(*vectors)


def combine_segments(first: Tensor, second: Tensor) -> Tensor:
    """Join the vectors of two segments, ``[..., P]`` each, to ``(u, v, |u - v|, u * v)``."""
    return torch.cat((first, second, (first - second).abs(), first * second), -1)


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``[2 B, ...]`` into first and second segments."""
    count = rows.shape[0] // 2
    return rows[:count], rows[count:]
