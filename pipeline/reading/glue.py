"""The eight GLUE tasks as data: columns, file layouts, label order, metrics, split rule.

Columns and label orders are those of the official TSV files and of the `datasets` hub's copy
(GLUE, Wang et al. 2019, arXiv 1804.07461). Registered in `TASKS`, one entry a task.
"""

from dataclasses import dataclass
from typing import Literal

SplitRule = Literal["halves", "thousand", "mnli"]
"""What serves as dev and test, as the test labels are hidden (small tasks: half of the validation
rows each; large ones: 1,000 training rows as dev and the validation rows as test; MNLI: mismatched
as dev, matched as test)."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where one file layout keeps a task's fields; positions as digits if it has no header."""

    text: str
    text_pair: str | None = None
    label: str
    header: bool = True


@dataclass(frozen=True, kw_only=True)
class TaskPreset:
    """One named task: what to read, what the labels mean, how it is scored."""

    kind: Literal["classification", "regression"]
    columns: tuple[Columns, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    """The first one chooses the best epoch."""
    rule: SplitRule


def _both(text: str, text_pair: str | None, label: str) -> tuple[Columns, Columns]:
    """Official columns, then the hub's, which calls every target "label"."""
    return (
        Columns(text=text, text_pair=text_pair, label=label),
        Columns(text=text, text_pair=text_pair, label="label"),
    )


TASKS: dict[str, TaskPreset] = {
    "cola": TaskPreset(
        kind="classification",
        columns=(
            Columns(text="sentence", label="label"),
            Columns(text="3", label="1", header=False),
        ),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        rule="halves",
    ),
    "sst2": TaskPreset(
        kind="classification",
        columns=(Columns(text="sentence", label="label"),),
        labels=("negative", "positive"),
        metrics=("accuracy",),
        rule="thousand",
    ),
    "mrpc": TaskPreset(
        kind="classification",
        columns=(
            Columns(text="#1 String", text_pair="#2 String", label="Quality"),
            Columns(text="sentence1", text_pair="sentence2", label="label"),
        ),
        labels=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        rule="halves",
    ),
    "qqp": TaskPreset(
        kind="classification",
        columns=_both("question1", "question2", "is_duplicate"),
        labels=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        rule="thousand",
    ),
    "stsb": TaskPreset(
        kind="regression",
        columns=_both("sentence1", "sentence2", "score"),
        labels=None,
        metrics=("pearson", "spearman"),
        rule="halves",
    ),
    "mnli": TaskPreset(
        kind="classification",
        columns=(
            Columns(text="sentence1", text_pair="sentence2", label="gold_label"),
            Columns(text="premise", text_pair="hypothesis", label="label"),
        ),
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        rule="mnli",
    ),
    "qnli": TaskPreset(
        kind="classification",
        columns=(Columns(text="question", text_pair="sentence", label="label"),),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        rule="thousand",
    ),
    "rte": TaskPreset(
        kind="classification",
        columns=(Columns(text="sentence1", text_pair="sentence2", label="label"),),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        rule="halves",
    ),
}
