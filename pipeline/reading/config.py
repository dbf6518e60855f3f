"""The configuration of a data set: which files, which columns, which task, how to split."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from pipeline.config import Config
from pipeline.reading.glue import TASKS, TaskPreset
from pipeline.reading.tables import EncodingErrors

KINDS = ("classification", "regression")

Column = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
"""A column's name, or its 0-based position."""


class DataConfig(Config):
    """Which examples, where their fields are, and how they are split."""

    task: str = "classification"
    """classification, regression, or a GLUE task: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte.
    Pictures and clips (retrieval, flickr30k, coco, msrvtt, msvd) have options of their own:
    `--task retrieval --help`."""
    train: Path
    """Training file (.tsv .csv .jsonl .parquet), or a folder with all splits (GLUE's own layout,
    or `datasets.save_to_disk`)."""
    dev: Path | None = None
    """Development file; if absent, it comes from the folder or is split off the training rows."""
    test: Path | None = None
    """Test file, labelled or not; if absent, it comes from the folder or is split off."""
    text: Column | None = None
    """Column of the (first) text, by name or 0-based position; the default is "text"."""
    text_pair: Column | None = None
    """Column of the second text of a pair task, by name or 0-based position."""
    label: Column | None = None
    """Column of the label or score, by name or 0-based position; the default is "label"."""
    id: Column | None = None
    """Column of an identifier, unique in its split; by default the row's 0-based number."""
    group_column: Column | None = None
    """Column of a group (an author, a document), by name or 0-based position, whose rows stay in
    one split and in one fold, beside rows of equal text; by default there is none."""
    header: bool = True
    """Whether TSV and CSV files start with a line of column names."""
    pair: Literal["joint", "separate"] = "joint"
    """Pairs: one input of two segments, or two sentences encoded on their own."""
    label_names: tuple[str, ...] | None = None
    """Class names in order; by default those of the task, or the sorted labels of the training
    rows."""
    label_threshold: float | None = None
    """Make two classes from a numeric label: above this value is the second class."""
    label_margin: float = 0.0
    """With `label_threshold`: leave out rows whose value is within this distance of it."""
    metrics: tuple[str, ...] | None = None
    """Metrics to report, the first one choosing the best epoch; by default the task's own."""
    fractions: tuple[float, float, float] = (0.68, 0.12, 0.20)
    """Shares of train, dev and test where rows must be split; equal texts stay together."""
    split_seed: int = 0
    """Seed of that split."""
    fit_on_dev: bool = False
    """Add the development rows to the training rows: for the last fit, once every setting is
    chosen. There is no dev split then, and training keeps its last epoch."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with rows of missing text, unusable label or wrong number of fields."""
    encoding_errors: EncodingErrors = "strict"
    """Bytes that are not UTF-8: "strict" refuses the file, "replace" marks them."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if self.task not in (*KINDS, *TASKS):
            problems.append(f"unknown task {self.task!r}; known: {', '.join((*KINDS, *TASKS))}")
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6 or not self.fractions[0]:
            problems.append(f"fractions must be shares that sum to 1, not {self.fractions}")
        if self.label_margin < 0:
            problems.append(f"label_margin must not be negative, not {self.label_margin}")
        if self.label_margin and self.label_threshold is None:
            problems.append("label_margin needs label_threshold")
        if self.label_threshold is not None and self.task != "classification":
            problems.append("label_threshold makes classes: it needs task classification")
        if self.label_names is not None and len(set(self.label_names)) != len(self.label_names):
            problems.append(f"label_names has duplicates: {self.label_names}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def preset(self) -> TaskPreset | None:
        """The GLUE task's description; None for a generic task."""
        return TASKS.get(self.task)

    @property
    def kind(self) -> str:
        """The family of the task: "classification" or "regression"."""
        return self.preset.kind if self.preset else self.task
