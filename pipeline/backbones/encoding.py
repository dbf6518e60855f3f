"""Token ids of many inputs in flat memory: 4 bytes a token (5 with token types), no padding.

n inputs, T tokens in all, B inputs in a batch, L the longest of a batch.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.inputs import TextInput

_CHUNK = 1024
"""Inputs tokenised at a time: bounds the memory of the tokenizer's own lists."""


@dataclass(frozen=True)
class EncodedTexts:
    """Tokenised inputs, packed.

    Attributes:
        tokens: token ids, int32 [T].
        types: token types, int8 [T]; None if the backbone takes none.
        lengths: tokens of each input, int64 [n].
        truncated: whether the input was cut, bool [n].
        spans: first character of each token and the one behind its last, int32 [T, 2], both 0 for
            special tokens; None where they were not asked for.
    """

    tokens: NDArray[np.int32]
    types: NDArray[np.int8] | None
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    spans: NDArray[np.int32] | None = None

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each input begins in `tokens`, int64 [n + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def ids(self) -> list[NDArray[np.int32]]:
        """The token ids of each input, as views."""
        return [self.tokens[a:b] for a, b in zip(self.offsets, self.offsets[1:], strict=False)]

    def select(self, samples: NDArray[np.int64] | Sequence[int]) -> "EncodedTexts":
        """Return the inputs numbered `samples`, in that order."""
        samples = np.asarray(samples, dtype=np.int64)
        lengths = self.lengths[samples]
        starts = np.repeat(self.offsets[samples], lengths)
        within = np.arange(len(starts)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        index = starts + within  # [tokens of the selection]
        types = None if self.types is None else self.types[index]
        spans = None if self.spans is None else self.spans[index]
        return EncodedTexts(self.tokens[index], types, lengths, self.truncated[samples], spans)


def encode(
    tokenizer: Any,
    inputs: Iterable[TextInput],
    *,
    max_length: int,
    token_types: bool,
    spans: bool = False,
) -> EncodedTexts:
    """Tokenise `inputs` with the special tokens of `tokenizer`, cut to `max_length` tokens.

    A pair is joined by the tokenizer; where it is too long, its longer half is cut first. What was
    cut is flagged in the result.
    """
    tokens, types, lengths, truncated = array("i"), array("b"), array("q"), array("b")
    places = array("i")
    for chunk in _chunks(inputs):
        rows = [_Row()] * len(chunk)
        for paired in (False, True):
            where = [i for i, item in enumerate(chunk) if (item.pair is not None) is paired]
            given = [chunk[i] for i in where]
            found = _tokenise(tokenizer, given, max_length, token_types, spans)
            for i, row in zip(where, found, strict=True):
                rows[i] = row
        for row in rows:
            tokens.extend(row.ids)
            types.extend(row.types)
            places.extend(place for span in row.spans for place in span)
            lengths.append(len(row.ids))
            truncated.append(row.cut)
    return EncodedTexts(
        np.frombuffer(tokens, dtype=np.int32),
        np.frombuffer(types, dtype=np.int8) if token_types else None,
        np.frombuffer(lengths, dtype=np.int64),
        np.frombuffer(truncated, dtype=np.bool_),
        np.frombuffer(places, dtype=np.int32).reshape(-1, 2) if spans else None,
    )


def length_batches(
    samples: NDArray[np.int64],
    lengths: NDArray[np.int64],
    batch_tokens: int,
    *,
    pass_tokens: int = 64,
) -> Iterator[NDArray[np.int64]]:
    """Yield `samples` in batches of like length, longest first.

    A batch ends where it would hold more than `batch_tokens` tokens, padded to its longest, or
    where its padding has cost as much as another pass would. An input longer than `batch_tokens`
    makes a batch of its own.

    Args:
        samples: sample numbers, int64 [m].
        lengths: tokens of every sample of the cache, int64 [n].
        batch_tokens: bound of a batch, in tokens with padding.
        pass_tokens: fixed cost of one more forward pass, in tokens: what a GPU computes while one
            is launched is much more than what a CPU does.
    """
    order = samples[np.argsort(-lengths[samples], kind="stable")]
    sizes = lengths[order].tolist()
    start, padding = 0, 0
    for i, size in enumerate(sizes):
        padding += sizes[start] - size
        if i > start and (padding > pass_tokens or (i + 1 - start) * sizes[start] > batch_tokens):
            yield order[start:i]
            start, padding = i, 0
    if len(order):
        yield order[start:]


def _chunks(inputs: Iterable[TextInput]) -> Iterator[list[TextInput]]:
    rest = iter(inputs)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


class _Row(NamedTuple):
    """One tokenised input."""

    ids: list[int] = []  # noqa: RUF012 (never changed)
    types: list[int] = []  # noqa: RUF012
    spans: list[tuple[int, int]] = []  # noqa: RUF012
    cut: bool = False


def _tokenise(
    tokenizer: Any, inputs: list[TextInput], max_length: int, token_types: bool, spans: bool
) -> list[_Row]:
    """Return the rows of inputs: all with a pair, or all without."""
    if not inputs:
        return []
    rows = _call(tokenizer, inputs, token_types, spans)
    long = [i for i, row in enumerate(rows) if len(row.ids) > max_length]
    if long:
        given = [inputs[i] for i in long]
        cut = _call(
            tokenizer, given, token_types, spans, truncation="longest_first", max_length=max_length
        )
        for i, row in zip(long, cut, strict=True):
            rows[i] = row._replace(cut=True)
    return rows


def _call(
    tokenizer: Any, inputs: list[TextInput], token_types: bool, spans: bool, **options: Any
) -> list[_Row]:
    if spans:
        options["return_offsets_mapping"] = True
    found = tokenizer(
        [item.text for item in inputs],
        [item.pair for item in inputs] if inputs[0].pair is not None else None,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=token_types,
        verbose=False,
        **options,
    )
    nothing: list[list[Any]] = [[]] * len(inputs)
    parts = (
        found["input_ids"],
        found["token_type_ids"] if token_types else nothing,
        found["offset_mapping"] if spans else nothing,
    )
    return [_Row(*row) for row in zip(*parts, strict=True)]
