"""SideClassifier: a side network's vector and a head for classification or regression.

Legend: B examples, S segments (1, or 2 for two inputs compared with each other), P pooled width,
C outputs, M keys, F features of the kernel regression (the mean of every layer, concatenated).
Price: the side network's GEMMs; pooling and head are below a hundredth of it. A kernel regression
costs [B, F] x [F, M].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from .bases import KernelRegression
from .states import Outputs, SideModel, States
from .towers import SideTower

__all__ = ["SideClassifier"]


class SideClassifier(SideModel):
    """A trainable classifier or regressor over the recorded states of a frozen model.

    Two segments are combined as ``(u, v, |u - v|, u * v)``.

    Args:
        tower: side network and pooling; its vectors must not be normalised.
        segments: names of the towers that it reads, one, or two to compare with each other.
        num_outputs: C, classes, or 1 for regression.
        dropout: probability on the pooled vector and on the hidden layer.
        norm: LayerNorm on the pooled vector.
        hidden: width of a hidden layer (GELU) before the output; 0 for a linear head.
        kernel_keys: of a `KernelRegression` on the means of all layers, whose outputs are added to
            the head's; 0 for none. It is fitted, not trained.
        units: multiply the outputs by `scale` and add `shift` (of a regression's targets).

    Raises:
        ValueError: if an option is out of range.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        *,
        tower: SideTower,
        segments: Sequence[str],
        num_outputs: int,
        dropout: float = 0.1,
        norm: bool = True,
        hidden: int = 0,
        kernel_keys: int = 0,
        units: bool = False,
    ) -> None:
        super().__init__()
        if len(segments) not in (1, 2):
            raise ValueError(f"segments={list(segments)}: name one tower, or two to compare")
        if num_outputs < 1:
            raise ValueError(f"num_outputs={num_outputs}; give the number of classes, or 1")
        if tower.normalize:
            raise ValueError("a classifier's tower must keep its vectors' lengths: normalize=False")
        self.config: dict[str, Any] = {
            "tower": tower.config,
            "segments": list(segments),
            "num_outputs": num_outputs,
            "dropout": dropout,
            "norm": norm,
            "hidden": hidden,
            "kernel_keys": kernel_keys,
            "units": units,
        }
        self.segments = tuple(segments)
        self.tower = tower
        pooled = tower.out_width
        width = pooled * self.parts
        self.norm = nn.LayerNorm(pooled) if norm else nn.Identity()
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        if hidden:
            layers += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)]
        layers.append(nn.Linear(hidden or width, num_outputs))
        self.head = nn.Sequential(*layers)
        self.pooled_width = pooled
        features = tower.layers_width * self.parts
        self.kernel = (
            KernelRegression(keys=kernel_keys, width=features, out_width=num_outputs)
            if kernel_keys
            else None
        )
        self.units = units
        if units:
            self.register_buffer("scale", torch.ones(()))
            self.register_buffer("shift", torch.zeros(()))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a `config`, with freshly initialised parameters."""
        options = dict(config)
        return cls(tower=SideTower.from_config(options.pop("tower")), **options)

    @property
    def parts(self) -> int:
        """Vectors that an example's segments become: 1, or the 4 of a comparison."""
        return 1 if len(self.segments) == 1 else 4

    def forward(self, towers: Mapping[str, States]) -> Outputs:
        """Return "logits" ``[B, C]`` and the mean confidence over the segments.

        Raises:
            ValueError: if a tower or a tap is missing, or shapes do not fit the options.
        """
        lost = [name for name in self.segments if name not in towers]
        if lost:
            raise ValueError(f"no states of {', '.join(lost)} are given, only {', '.join(towers)}")
        return self.classify([self.pool(towers[name]) for name in self.segments])

    def pool(self, given: States) -> tuple[Tensor, Tensor]:
        """Return the pooled, normed vector ``[B, P]`` and the confidence ``[B, N]`` of a segment.

        With a kernel regression the vector is ``[B, P + F]``, with the layers' means behind.
        """
        found = self.tower.of(given)
        pooled = self.norm(found.vector)
        if self.kernel is not None:
            pooled = torch.cat((pooled, self.tower.layer_means(given).to(pooled)), -1)
        return pooled, found.confidence

    def classify(self, pooled: Sequence[tuple[Tensor, Tensor]]) -> Outputs:
        """Combine one `pool` result per segment and predict.

        Raises:
            ValueError: if the number of segments is not this classifier's.
        """
        if len(pooled) != len(self.segments):
            raise ValueError(f"{len(pooled)} segments were given, expected {len(self.segments)}")
        vectors, confidence = zip(*pooled, strict=True)
        logits = self.head(joined([vector[:, : self.pooled_width] for vector in vectors]))
        if self.kernel is not None:
            means = [vector[:, self.pooled_width :] for vector in vectors]
            logits = logits + self.kernel(joined(means)).to(logits.dtype)
        if self.units:
            logits = logits * self.scale + self.shift
        return Outputs(
            values={"logits": logits},
            confidence={self.segments[0]: torch.stack(confidence).mean(0)},
        )

    def weigh(self, factor: float) -> None:
        """Multiply what the head gives by `factor`."""
        output = self.head[-1]
        if not isinstance(output, nn.Linear):
            raise TypeError(f"the head must end in a Linear, not {type(output).__name__}")
        with torch.no_grad():
            output.weight.mul_(factor)
            output.bias.mul_(factor)


def joined(vectors: Sequence[Tensor]) -> Tensor:
    """Return one segment's vector as it is, or two, ``[B, P]`` each, compared, ``[B, 4 P]``."""
    if len(vectors) == 1:
        return vectors[0]
    first, second = vectors
    return torch.cat((first, second, (first - second).abs(), first * second), -1)
