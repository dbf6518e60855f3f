"""Windows of sentences' words as examples: a long sentence is read in several that overlap.

A word's tag is learned and judged in the window that shows most of what surrounds it. Memory: about
0.3 KB a word.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data import Example, Ints, clusters
from pipeline.inputs import Input, TextInput
from unipt.words import cuts

__all__ = ["Tagged", "Window", "tell_windows", "windows_of"]

logger = logging.getLogger(__name__)


class Window(NamedTuple):
    """Some words of a sentence, as one input."""

    id: str
    sentence: int
    words: tuple[str, ...]
    tags: tuple[int, ...] | None
    """Tag of each word; None where they are hidden."""
    first: int
    """Position in the sentence of the first word."""
    own: tuple[int, int]
    """Words of the window, from and to, that it answers for."""

    @property
    def text(self) -> str:
        """The words, joined by spaces."""
        return " ".join(self.words)


@dataclass(frozen=True, eq=False)
class Tagged:
    """The windows of one split as examples; the words of a sentence are in one or several.

    Attributes:
        windows: in the order of their sentences.
        names: id of each sentence that has a window.
    """

    windows: tuple[Window, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.windows)

    @cached_property
    def hidden(self) -> bool:
        """Whether the tags are hidden."""
        return any(window.tags is None for window in self.windows)

    @cached_property
    def _inputs(self) -> list[TextInput]:
        return [TextInput(window.text) for window in self.windows]

    def inputs(self, tower: str, modality: str) -> Sequence[Input]:
        """Return the text of each window."""
        return self._inputs

    def rows(self, tower: str, modality: str) -> list[tuple[str, Input]]:
        """Return the text of each window, with its id."""
        return [(w.id, given) for w, given in zip(self.windows, self._inputs, strict=True)]

    @property
    def groups(self) -> list[int]:
        """What a window must stay together with: those of its sentence, and equal ones."""
        found = zip(self.windows, self._inputs, strict=True)
        return clusters([Example(w.id, (given,), w.tags, str(w.sentence)) for w, given in found])

    @cached_property
    def sentence_of(self) -> Ints:
        """Position of each window's sentence among those of the split, ascending, [n]."""
        found = [window.sentence for window in self.windows]
        return np.unique(found, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def first_windows(self) -> Ints:
        """Position of each sentence's first window, [m]."""
        return np.unique(self.sentence_of, return_index=True)[1].astype(np.int64)

    @property
    def strata(self) -> NDArray[Any] | None:
        """There are no classes of sentences."""
        return None

    @property
    def counts(self) -> dict[str, int]:
        """Return the numbers of sentences, windows and words."""
        words = sum(window.own[1] - window.own[0] for window in self.windows)
        return {"sentences": len(self.names), "windows": len(self.windows), "words": words}

    def take(self, rows: Ints) -> "Tagged":
        """Return the windows of these positions."""
        kept = np.unique(self.sentence_of[rows])
        return Tagged(
            tuple(self.windows[row] for row in rows.tolist()),
            tuple(self.names[number] for number in kept.tolist()),
        )

    def digest(self) -> bytes:
        """Return texts and tags, one after another."""
        return b"".join(
            given.key() + f":{window.tags}{window.own}".encode()
            for window, given in zip(self.windows, self._inputs, strict=True)
        )


def windows_of(sentences: Iterable[Example], most: int, overlap: int) -> Tagged:
    """Return sentences, whose targets are (words, tags or None), cut into windows.

    Args:
        sentences: of a split.
        most: words of a window.
        overlap: words that two windows of a sentence share at least.
    """
    windows, names = [], []
    for number, example in enumerate(sentences):
        words, tags = example.target
        names.append(example.id)
        parts = cuts(len(words), most, overlap)
        for part, cut in enumerate(parts):
            windows.append(
                Window(
                    id=example.id if len(parts) == 1 else f"{example.id}#{part}",
                    sentence=number,
                    words=words[cut.start : cut.stop],
                    tags=None if tags is None else tags[cut.start : cut.stop],
                    first=cut.start,
                    own=(cut.low, cut.high),
                )
            )
    return Tagged(tuple(windows), tuple(names))


def tell_windows(splits: Mapping[str, Tagged], most: int, overlap: int) -> None:
    """Say in a logged sentence how many sentences are read in several windows, if any are."""
    long = {
        name: len({w.sentence for w in each.windows if w.first}) for name, each in splits.items()
    }
    if any(long.values()):
        counts = ", ".join(f"{count} of {name}" for name, count in long.items() if count)
        logger.warning(
            "sentences longer than %d words (max_words) are read in windows that overlap by %d: %s",
            most, overlap, counts,
        )  # fmt: skip
