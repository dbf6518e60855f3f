"""The linear probe of a ranking: ridge regression between two towers' mean-pooled features.

Features are standardised on the training rows. One regression predicts the media features of a
caption, another the text features of an item, a third the mean of the text's last tap as it is
(centred only), and a candidate is ranked by cosine with one of the predictions or by the sum of the
first two.

m captions, n items, D features. Cost: one eigendecomposition of a [min(m, D)]^2 matrix in float64 a
regression, from which every strength follows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data import Ints
from unipt import Outputs

Direction = Literal["text_to_media", "media_to_text", "media_to_sentence", "both"]
STRENGTHS = (1e6, 1e5, 1e4, 1e3, 1e2, 1e1)
"""Values tried of alpha, the weight of the squared coefficients; strongest first."""
SENTENCE = "sentence"
"""Name of the value that holds the means of the text's last tap, beside "text" and "media"."""


class Ridge:
    """Ridge regression for every strength from one eigendecomposition.

    Args:
        inputs: centred, [m, D].
        outputs: centred, [m, D'].
    """

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        self.inputs, self.dual = inputs, len(inputs) < inputs.shape[1]
        gram = inputs @ inputs.T if self.dual else inputs.T @ inputs
        self.values, self.vectors = torch.linalg.eigh(gram)
        self.rotated = self.vectors.T @ (outputs if self.dual else inputs.T @ outputs)

    def weights(self, alpha: float) -> Tensor:
        """Return the coefficients of one strength, [D, D']."""
        scale = 1.0 / (self.values.clamp_min(0.0) + alpha)
        solved = self.vectors @ (scale[:, None] * self.rotated)
        result: Tensor = self.inputs.T @ solved if self.dual else solved
        return result


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and deviation of each feature of the training rows, by the value's name."""

    mean: Mapping[str, Tensor]
    scale: Mapping[str, Tensor]

    def of(self, features: Sequence[Outputs], name: str) -> Tensor:
        """Return the standardised features of one name, float64 [k, D]; sentences centred only."""
        values = next(each.values[name] for each in features if name in each.values).double()
        centred = values - self.mean[name]
        return centred if name == SENTENCE else centred / self.scale[name]


@dataclass(frozen=True, eq=False)
class RidgeProbe:
    """Regressions of one direction and one strength.

    Attributes:
        direction: what is predicted from what.
        strength: alpha.
        scaling: of the training rows.
        weights: from text to media, from media to text or from media to the sentence.
    """

    direction: Direction
    strength: float
    scaling: Scaling
    weights: Mapping[str, Tensor]

    def outputs(self, features: Sequence[Outputs]) -> list[Outputs]:
        """Return vectors of captions [m, E] and items [n, E] whose products are the scores."""
        text, media = (F.normalize(self.scaling.of(features, n), dim=1) for n in ("text", "media"))
        if self.direction == "text_to_media":
            text = self._predicted("text_to_media", features)
        elif self.direction == "media_to_text":
            media = self._predicted("media_to_text", features)
        elif self.direction == "media_to_sentence":
            text = F.normalize(self.scaling.of(features, SENTENCE), dim=1)
            media = self._predicted("media_to_sentence", features)
        else:
            text = torch.cat((self._predicted("text_to_media", features), text), 1)
            media = torch.cat((media, self._predicted("media_to_text", features)), 1)
        return [Outputs(values={"text": text.float()}), Outputs(values={"media": media.float()})]

    def describe(self) -> dict[str, Any]:
        """Return direction and strength."""
        return {"direction": self.direction, "strength": self.strength}

    def _predicted(self, way: str, features: Sequence[Outputs]) -> Tensor:
        given = self.scaling.of(features, "text" if way == "text_to_media" else "media")
        return F.normalize(given @ self.weights[way], dim=1)


def ridge_probes(
    features: Sequence[Outputs], item_of: Ints, chosen: Mapping[str, Any] | None
) -> Iterator[RidgeProbe]:
    """Yield probes of each direction and strength, or the chosen one alone.

    Args:
        features: of the training captions ("text", "sentence") and items ("media").
        item_of: position of each caption's item, [m].
        chosen: what `RidgeProbe.describe` said of one.
    """
    raw = {name: value.double() for each in features for name, value in each.values.items()}
    mean = {name: value.mean(0) for name, value in raw.items()}
    found = {name: value.std(0, correction=0) for name, value in raw.items()}
    scale = {name: torch.where(value > 0, value, 1.0) for name, value in found.items()}
    scaling = Scaling(mean, scale)
    text, sentence, media = (scaling.of(features, name) for name in ("text", SENTENCE, "media"))
    media = media[torch.from_numpy(item_of)]
    regressions = {
        "text_to_media": Ridge(text, media),
        "media_to_text": Ridge(media, text),
        "media_to_sentence": Ridge(media, sentence),
    }
    directions: tuple[Direction, ...] = get_args(Direction)
    strengths: Sequence[float] = STRENGTHS
    if chosen is not None:
        directions, strengths = (chosen["direction"],), (chosen["strength"],)
    for strength in strengths:
        weights = {name: each.weights(strength) for name, each in regressions.items()}
        for direction in directions:
            yield RidgeProbe(direction, strength, scaling, weights)
