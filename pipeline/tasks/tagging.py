"""Tagging: a tag for each word, from the logits of its tokens.

b samples of a batch, T tokens, W words, C tags. A token belongs to the word in which its last
character lies, by the character spans that the cache holds; training loads no tokenizer. Cost of a
judgement: one pass over the tokens, and sums over sentences for each resample.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import ConfigError
from pipeline.data import Ints
from pipeline.reading.tagged import OUTSIDE
from pipeline.reading.windows import Tagged, Window
from pipeline.tasks.base import Moment
from pipeline.tasks.classification import STRENGTHS
from pipeline.tasks.entities import matches
from pipeline.tasks.linear import FEATURES, LinearProbe
from pipeline.tasks.metrics import check_metrics
from unipt import Outputs
from unipt.words import WordPooling, Words, pooled_words, word_spans

ENTITY_METRICS = ("entity_f1", "entity_precision", "entity_recall", "token_accuracy")
PLAIN_METRICS = ("token_accuracy", "macro_f1")
IGNORED = -100
"""Tag of a word that another window answers for, or whose tag is hidden."""


class Batch(NamedTuple):
    """The words of a batch's windows, with their tags."""

    words: Words
    tags: Tensor
    """[W], `IGNORED` where there is nothing to learn."""
    own: Tensor
    """Whether the window answers for the word, [W]."""


class Tagging:
    """Cross-entropy over the words of a sentence.

    Args:
        labels: the tags, in order.
        pooling: a word's logits are those of its first token, or the mean of all of them.
        entities: whether the tags mark entities in IOB2, and are scored so.
        metrics: what to report; None takes entity F1, precision, recall and token accuracy, or
            token accuracy and macro F1 where there are no entities.
        label_smoothing: share of the target spread over all tags, 0 to 1.

    Raises:
        ConfigError: an unknown metric.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        entities: bool,
        pooling: WordPooling = "first",
        metrics: Sequence[str] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.labels, self.pooling, self.label_smoothing = tuple(labels), pooling, label_smoothing
        self.metrics = tuple(metrics or (ENTITY_METRICS if entities else PLAIN_METRICS))
        check_metrics(self.metrics, (*ENTITY_METRICS, "macro_f1") if entities else PLAIN_METRICS)

    @property
    def num_outputs(self) -> int:
        """One logit a tag."""
        return len(self.labels)

    @property
    def blank(self) -> int:
        """The tag of a word without a token: O, or the first one."""
        return self.labels.index(OUTSIDE) if OUTSIDE in self.labels else 0

    @property
    def facts(self) -> dict[str, Any]:
        """The tags, and which tokens speak for a word."""
        return {"labels": list(self.labels), "word_pooling": self.pooling}

    def targets(self, examples: Tagged, samples: Mapping[str, Ints]) -> "WindowWords":
        """Return the words of each window with their tags."""
        if examples.hidden:
            raise ConfigError("these sentences have no tags to train on")
        return WindowWords(examples.windows)

    def loss(self, outputs: Outputs, targets: Batch, now: Moment) -> Tensor:
        """Return the mean cross-entropy over the words that have a token and a tag."""
        logits, seen = self.word_logits(outputs, targets.words)
        tags = torch.where(seen, targets.tags.to(seen.device), IGNORED)
        total = F.cross_entropy(
            logits.float(),
            tags,
            ignore_index=IGNORED,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return total / (tags != IGNORED).sum().clamp_min(1)

    def word_logits(self, outputs: Outputs, words: Words) -> tuple[Tensor, Tensor]:
        """Return the logits of each word, [W, C], and whether it has a token at all, [W]."""
        logits, spans = outputs.values["logits"], outputs.values["spans"]
        return pooled_words(logits, spans, outputs.offsets["logits"], words, self.pooling)

    def judge(self, outputs: Sequence[Outputs], examples: Tagged) -> "TaggedSplit":
        """Return the judgement of token logits [T, C] with their spans."""
        (found,) = outputs
        batch = WindowWords(examples.windows).batch(torch.arange(len(examples)))
        logits, seen = self.word_logits(found, batch.words)
        best = torch.where(seen, logits.argmax(1), self.blank).numpy()
        lost = int((~seen & batch.own).sum())
        return TaggedSplit(self, examples, best, found, lost)

    def probes(
        self,
        features: Sequence[Outputs],
        examples: Tagged,
        chosen: Mapping[str, Any] | None = None,
    ) -> Iterable["WordProbe"]:
        """Yield logistic regressions of several strengths on the words' standardised features."""
        from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 (slow to import)
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

        (found,) = features
        batch = self.targets(examples, {}).batch(torch.arange(len(examples)))
        rows, seen = pooled_words(
            found.values[FEATURES],
            found.values["spans"],
            found.offsets[FEATURES],
            batch.words,
            self.pooling,
        )
        kept = seen & (batch.tags != IGNORED)
        own = [Outputs({FEATURES: rows[kept]})]
        for strength in STRENGTHS if chosen is None else (chosen["strength"],):
            model = LogisticRegression(C=strength, max_iter=200)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                fitted = LinearProbe.fit(
                    model, strength, own, batch.tags[kept].numpy(), self._scores
                )
            yield WordProbe(fitted)

    def _scores(self, model: Any, rows: NDArray[Any]) -> Tensor:
        scores = model.decision_function(rows)
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], 1)
        found = np.full((len(rows), self.num_outputs), -np.inf)  # a tag may have no word
        found[:, model[-1].classes_] = scores
        return torch.from_numpy(found)


class WordProbe:
    """A linear probe that scores every token; a word's score is that of its tokens."""

    def __init__(self, probe: LinearProbe) -> None:
        self.probe = probe

    def outputs(self, features: Sequence[Outputs]) -> list[Outputs]:
        """Return the tokens' logits with their spans."""
        (found,), (given,) = self.probe.outputs(features), features
        bounds = given.offsets[FEATURES]
        values = {"logits": found.values["logits"], "spans": given.values["spans"]}
        return [Outputs(values, dict.fromkeys(values, bounds))]

    def describe(self) -> dict[str, Any]:
        """Return the strength."""
        return self.probe.describe()


class WindowWords:
    """The words of windows, made into batches on demand."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = windows
        self._known = [_words(window) for window in windows]

    def batch(self, index: Tensor) -> Batch:
        """Return the words of the windows at these positions."""
        chosen = [self._known[place] for place in index.tolist()]
        counts = torch.tensor([len(each[0]) for each in chosen])
        starts, ends, tags, own = (
            torch.from_numpy(np.concatenate(part)) for part in zip(*chosen, strict=True)
        )
        sample = torch.repeat_interleave(torch.arange(len(chosen)), counts)
        return Batch(Words(starts, ends, sample), tags, own)


def _words(window: Window) -> tuple[Ints, Ints, Ints, NDArray[np.bool_]]:
    starts, ends = (np.asarray(part, np.int64) for part in word_spans(window.words))
    tags, own = np.full(len(starts), IGNORED, np.int64), np.zeros(len(starts), np.bool_)
    low, high = window.own
    own[low:high] = True
    if window.tags is not None:
        tags[low:high] = window.tags[low:high]
    return starts, ends, tags, own


@dataclass(frozen=True, eq=False)
class TaggedSplit:
    """The tags of a split; its units are the sentences."""

    task: Tagging
    examples: Tagged
    best: NDArray[np.int64]
    """Tag of each word of each window, one after another."""
    found: Outputs
    lost: int
    """Words without a token, as their texts were cut or hold nothing that the tokenizer knows."""
    unit: str = "sentences"
    digits: int = 3

    def __len__(self) -> int:
        return len(self.examples.names)

    @cached_property
    def _sentences(self) -> list[tuple[list[str], list[int], list[int] | None]]:
        """Words, tags given and tags wanted of each sentence, put together from its windows."""
        made: list[tuple[list[str], list[int], list[int] | None]] = [
            ([], [], []) for _ in self.examples.names
        ]
        place = 0
        for window, sentence in zip(
            self.examples.windows, self.examples.sentence_of.tolist(), strict=True
        ):
            low, high = window.own
            words, given, wanted = made[sentence]
            words += window.words[low:high]
            given += self.best[place + low : place + high].tolist()
            place += len(window.words)
            if window.tags is None or wanted is None:
                made[sentence] = (words, given, None)
            else:
                wanted += window.tags[low:high]
        return made

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Of each sentence: entities right, wanted, given; words right, all; then by tag."""
        size = len(self.task.labels)
        rows = np.zeros((len(self), 5 + 3 * size), np.int64)
        for row, (_, given, wanted) in zip(rows, self._sentences, strict=True):
            own, other = np.asarray(given, np.int64), np.asarray(wanted or (), np.int64)
            row[:3] = matches(self._names(other), self._names(own))
            row[3:5] = (own == other).sum(), len(own)
            for part, tags in enumerate((own[own == other], other, own)):
                row[5 + part * size : 5 + (part + 1) * size] = np.bincount(tags, minlength=size)
        return rows

    def _names(self, tags: Ints) -> list[str]:
        return [self.task.labels[tag] for tag in tags.tolist()]

    def metrics(self, units: Ints | None = None) -> dict[str, float]:
        """Return the metrics over these sentences together (micro-averaged)."""
        if self.examples.hidden:
            return {}
        rows = self._counts if units is None else self._counts[units]
        right, wanted, given, hits, words, *by_tag = rows.sum(0).tolist()
        known = {
            "entity_f1": _share(2 * right, wanted + given),
            "entity_precision": _share(right, given),
            "entity_recall": _share(right, wanted),
            "token_accuracy": _share(hits, words),
            "macro_f1": _macro_f1(np.asarray(by_tag).reshape(3, -1)),
        }
        return {name: known[name] for name in self.task.metrics}

    def extras(self) -> dict[str, float]:
        """Return how many words have no token; they are given the tag O, or the first one."""
        return {"words_without_token": self.lost} if self.lost else {}

    def records(self) -> dict[str, Iterable[dict[str, Any]]]:
        """Return one record a sentence: words, tags given, tags wanted, confidence."""
        layers: list[dict[str, Any]] = [{} for _ in self.examples.names]
        for rows in self.found.confidence.values():  # of the only tower; of the first window
            chosen = rows[torch.from_numpy(self.examples.first_windows)].tolist()
            layers = [{"confidence": row} for row in chosen]
        labels = self.task.labels
        return {
            "predictions": [
                {
                    "id": name,
                    "tokens": words,
                    "target_tags": None if wanted is None else [labels[tag] for tag in wanted],
                    "tags": [labels[tag] for tag in given],
                    **own,
                }
                for name, (words, given, wanted), own in zip(
                    self.examples.names, self._sentences, layers, strict=True
                )
            ]
        }


def _share(part: float, whole: float) -> float:
    return float(part) / whole if whole else 0.0


def _macro_f1(counts: NDArray[np.int64]) -> float:
    """Return the mean F1 of the tags that are wanted or given; counts are [3, C]."""
    right, wanted, given = counts
    present = (wanted + given) > 0
    return float((2 * right[present] / (wanted + given)[present]).mean()) if present.any() else 0.0
