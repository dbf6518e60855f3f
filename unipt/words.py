"""Words of token values: which tokens make a word, by where both lie in a text.

A long text is read in windows of its words that overlap; each word has its value from one of them.

Legend: b samples, T tokens, W words, F features or logits.
Price: one binary search a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Cut", "WordPooling", "Words", "cuts", "pooled_words", "word_spans"]

WordPooling = Literal["first", "mean"]
FAR = 1 << 24
"""Characters between two samples of a batch, where their texts are laid one after another."""


class Words(NamedTuple):
    """The words of a batch's samples, one after another."""

    starts: Tensor
    """First character of each word in its text, ``[W]``."""
    ends: Tensor
    """Character behind its last, ``[W]``."""
    sample: Tensor
    """Which of the batch's samples it belongs to, ascending, ``[W]``."""


class Cut(NamedTuple):
    """A window of a text's words."""

    start: int
    """Its first word."""
    stop: int
    """The word behind its last."""
    low: int
    """The first word that it answers for, counted from `start`."""
    high: int
    """The word behind the last that it answers for, counted from `start`."""


def cuts(words: int, most: int, overlap: int) -> list[Cut]:
    """Return windows of at most `most` words; a word is answered for in the middle of its windows.

    Args:
        words: of the text; none gives no window.
        most: words of a window.
        overlap: words that two windows share at least, fewer than `most`.
    """
    if not words:
        return []
    starts = [0]
    while starts[-1] + most < words:
        starts.append(min(starts[-1] + most - overlap, words - most))
    stops = [min(start + most, words) for start in starts]
    edges = [0, *((a + b) // 2 for a, b in zip(starts[1:], stops[:-1], strict=True)), words]
    return [
        Cut(start, stop, edges[n] - start, edges[n + 1] - start)
        for n, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]


def word_spans(words: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return where each of the words begins and ends in their text, which single spaces join.

    What a word holds does not matter, so it may have spaces of its own.
    """
    starts, ends, place = [], [], 0
    for word in words:
        starts.append(place)
        ends.append(place + len(word))
        place += len(word) + 1
    return starts, ends


def pooled_words(
    values: Tensor, spans: Tensor, offsets: Tensor, words: Words, pooling: WordPooling
) -> tuple[Tensor, Tensor]:
    """Return each word's value, that of its first token or the mean of all.

    A token belongs to the word in which its last character lies.

    Args:
        values: of the tokens, ``[T, F]``.
        spans: first character of each token and the one behind its last, ``[T, 2]``.
        offsets: bounds of the samples' tokens, ``[b + 1]``.
        words: of the samples.
        pooling: "first" or "mean".

    Returns:
        ``[W, F]``, zeros for a word without a token, and whether it has one, ``[W]``.
    """
    words = Words(*(part.to(values.device) for part in words))
    lengths = offsets.to(values.device).diff()
    sample = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths)
    begin, end = spans.to(values.device).long().unbind(1)
    last = sample * FAR + end - 1  # a token's last character, in all texts one after another
    word = torch.searchsorted(words.sample * FAR + words.starts, last, right=True) - 1
    inside = (end > begin) & (word >= 0)
    place = word.clamp_min(0)
    inside &= (words.sample[place] == sample) & (end <= words.ends[place])
    tokens, owner = inside.nonzero().squeeze(1), place[inside]
    count = len(words.starts)
    if pooling == "mean":
        totals = values.new_zeros(count, values.shape[1]).index_add(0, owner, values[tokens])
        found = torch.bincount(owner, minlength=count)
        return totals / found.clamp_min(1)[:, None], found > 0
    first = torch.full((count,), len(values), device=values.device)
    first = first.scatter_reduce(0, owner, tokens, "amin")
    seen = first < len(values)
    chosen = values[first.clamp_max(max(0, len(values) - 1))]
    return torch.where(seen[:, None], chosen, torch.zeros_like(chosen)), seen
