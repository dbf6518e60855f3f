"""SideTagger: a side network's token features and a head that tags each token.

Legend: B samples, L tokens (padded), T valid tokens (packed), C tags, E features.
Price: the side network's GEMMs; the head is below a hundredth of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import nn

from .states import Outputs, SideModel, States
from .towers import SideTower

__all__ = ["SideTagger"]

FACTS = ("spans",)
"""Facts of the input that are passed on beside the logits, where they are given."""


class SideTagger(SideModel):
    """A trainable tagger over the recorded token states of a frozen model.

    Args:
        tower: side network over tokens; its pooling is not used.
        name: of the tower that it reads.
        num_outputs: C, the number of tags.
        dropout: probability on the token features.
        norm: LayerNorm on the token features.

    Raises:
        ValueError: if an option is out of range, or the tower has a vector anchor.
    """

    def __init__(
        self,
        *,
        tower: SideTower,
        name: str,
        num_outputs: int,
        dropout: float = 0.1,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if num_outputs < 1:
            raise ValueError(f"num_outputs={num_outputs}; give the number of tags")
        if tower.pooling is None:
            raise ValueError("a tagger needs the states of tokens; this anchor is one vector")
        self.config: dict[str, Any] = {
            "tower": tower.config,
            "name": name,
            "num_outputs": num_outputs,
            "dropout": dropout,
            "norm": norm,
        }
        self.tower, self.name = tower, name
        width = tower.side.out_width
        self.head = nn.Sequential(
            nn.LayerNorm(width) if norm else nn.Identity(),
            nn.Dropout(dropout),
            nn.Linear(width, num_outputs),
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a `config`, with freshly initialised parameters."""
        options = dict(config)
        return cls(tower=SideTower.from_config(options.pop("tower")), **options)

    def forward(self, towers: Mapping[str, States]) -> Outputs:
        """Return "logits" ``[T, C]`` packed or ``[B, L, C]`` padded, and the facts given.

        Raises:
            ValueError: if the tower or a tap is missing, or shapes do not fit the options.
        """
        if self.name not in towers:
            raise ValueError(f"no states of {self.name} are given, only {', '.join(towers)}")
        given = towers[self.name]
        found = self.tower.token_features(given)
        values = {"logits": self.head(found.features)}
        values |= {name: given.states[name] for name in FACTS if name in given.states}
        bounds = given.offsets.get(self.tower.stream.axis or "")
        offsets = {} if bounds is None else dict.fromkeys(values, bounds)
        return Outputs(values, offsets, {self.name: found.confidence})
