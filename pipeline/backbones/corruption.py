"""Views of a text: captions with a fifth of their tokens corrupted, as VSE-infinity trains on them.

VSE-infinity (arXiv:2011.04305) draws anew at every step; a cache holds K fixed draws. Costs one
seeded generator a view, about 20 us.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones.encoding import EncodedTexts
from pipeline.backbones.family import BackboneError
from pipeline.inputs import TextInput, view_key

SHARE = 0.2
"""Share of the tokens that are corrupted; of these `MASKED` become the mask token, `RANDOM` a
random one, and the rest are dropped."""
MASKED, RANDOM = 0.5, 0.1


@dataclass(frozen=True, eq=False)
class Corruption:
    """What the tokens of one tokenizer may become.

    Attributes:
        mask: id of the mask token.
        special: ids that stay as they are.
        vocabulary: ids that a random token is drawn from.
    """

    mask: int
    special: NDArray[np.int64]
    vocabulary: NDArray[np.int64]

    @classmethod
    def of(cls, tokenizer: Any, embeddings: int, name: str) -> "Corruption":
        """Return the corruption for `tokenizer` and a model with so many `embeddings`.

        Raises:
            BackboneError: the tokenizer of the backbone `name` has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise BackboneError(
                f"the tokenizer of {name} has no mask token, which the corrupted views of a text "
                "need; extract one view (--views 1), or use a masked language model such as BERT"
            )
        unknown = tokenizer.unk_token_id  # stands for a word of the text
        special = np.array([i for i in tokenizer.all_special_ids if i != unknown], dtype=np.int64)
        ids = np.arange(min(len(tokenizer), embeddings), dtype=np.int64)
        return cls(tokenizer.mask_token_id, special, np.setdiff1d(ids, special))

    def apply(
        self, encoded: EncodedTexts, inputs: Sequence[TextInput], views: Sequence[int]
    ) -> EncodedTexts:
        """Corrupt each of the `encoded` `inputs` whose view is above 0; seeded by its view key."""
        tokens = encoded.tokens.copy()
        kept = np.ones(len(tokens), dtype=np.bool_)
        for i in np.flatnonzero(views).tolist():
            part = slice(*encoded.offsets[i : i + 2])
            seed = int.from_bytes(view_key(inputs[i].key(), views[i]), "little")
            rng = np.random.default_rng(seed)
            tokens[part], kept[part] = self._corrupt(encoded.tokens[part], rng)
        before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        return EncodedTexts(
            tokens=tokens[kept],
            types=None if encoded.types is None else encoded.types[kept],
            lengths=np.diff(before[encoded.offsets]),
            truncated=encoded.truncated,
            spans=None if encoded.spans is None else encoded.spans[kept],
        )

    def _corrupt(
        self, ids: NDArray[np.int32], rng: np.random.Generator
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return the corrupted ids and which of them are kept, both [L]."""
        part = rng.random(len(ids)) / SHARE  # below 1: corrupted
        part[np.isin(ids, self.special)] = np.inf
        drawn = rng.choice(self.vocabulary, len(ids))
        result = np.where(part < MASKED + RANDOM, drawn, ids)
        result = np.where(part < MASKED, self.mask, result).astype(np.int32)
        kept = (part < MASKED + RANDOM) | (part >= 1)
        if not kept.any():  # a text never loses its last token
            kept[:1] = True
        return result, kept
