"""The configurations of data sets of labelled texts and of captions: columns, labels, protocols."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from pipeline.data import DataConfig
from pipeline.reading.glue import TASKS, TaskPreset

KINDS = ("classification", "regression")

Column = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
"""A column's name, or its 0-based position."""


class TextData(DataConfig):
    """Which texts with which labels or scores, where their fields are, and how they are split."""

    task: str = "classification"
    """classification, regression, or a GLUE task: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte.
    Other tasks have options of their own: `--task NAME --help`."""
    train: Path
    """Training file (.tsv .csv .jsonl .parquet), or a folder with all splits (GLUE's own layout,
    or `datasets.save_to_disk`)."""
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

    def contradictions(self) -> list[str]:
        """Return what of the task, the labels and the shares does not go together."""
        problems = super().contradictions()
        if self.task not in (*KINDS, *TASKS):
            problems.append(f"unknown task {self.task!r}; known: {', '.join((*KINDS, *TASKS))}")
        if self.label_margin < 0:
            problems.append(f"label_margin must not be negative, not {self.label_margin}")
        if self.label_margin and self.label_threshold is None:
            problems.append("label_margin needs label_threshold")
        if self.label_threshold is not None and (self.scored or self.preset):
            problems.append("label_threshold makes classes: it needs task classification")
        if self.label_names is not None and len(set(self.label_names)) != len(self.label_names):
            problems.append(f"label_names has duplicates: {self.label_names}")
        return problems

    @property
    def preset(self) -> TaskPreset | None:
        """The GLUE task's description; None for a generic task."""
        return TASKS.get(self.task)

    @property
    def separate(self) -> bool:
        """Whether an example is two inputs, each encoded on its own."""
        columns = self.preset.columns if self.preset else ()
        paired = self.text_pair is not None or any(each.text_pair for each in columns)
        return paired and self.pair == "separate"

    @property
    def kind(self) -> str:
        """The family of the task: "classification" or "regression"."""
        return self.preset.kind if self.preset else self.task

    @property
    def scored(self) -> bool:
        """Whether targets are scores instead of classes."""
        return self.kind == "regression"


PROTOCOLS: dict[str, dict[str, Any]] = {"coco": {"folds": 5}, "msvd": {"m2t_over": "items"}}
"""What a task changes of the defaults: its published protocol."""


class CaptionData(DataConfig):
    """Which pictures or clips and captions, where they are, how they are split and ranked."""

    task: Literal["retrieval", "flickr30k", "coco", "msrvtt", "msvd"] = "retrieval"
    """Any captions file (retrieval), or the layout and protocol of a published data set."""
    train: Path
    """Captions file (.csv .tsv .jsonl .json .parquet), Karpathy JSON, or the data set's folder."""
    dev: Path | None = None
    """Development file; if absent, it comes from the folder or is split off the training rows."""
    test: Path | None = None
    """Test file; if absent, it comes from the folder or is split off the training rows."""
    media: Path | None = None
    """Folder of the pictures or clips; the default is the folder of the captions file."""
    media_column: Column | None = None
    """Column of the file, by name or 0-based position: a path within `media`, or its stem. The
    default is the first known name: media image video file_name video_id ..."""
    caption_column: Column | None = None
    """Column of the caption or list of captions; the default is the first known name: caption
    captions text sentence ..."""
    group_column: Column | None = None
    """Column of a group (a concept) whose rows stay in one split; by default each item is one."""
    folds: int = 1
    """Equal runs of the test items whose metrics are averaged besides those of all (coco: 5)."""
    m2t_over: Literal["captions", "items"] = "captions"
    """What a picture or clip ranks: every caption, or each item by its best caption (msvd)."""
    bad_media: Literal["error", "skip"] = "error"
    """What to do with pictures and clips that cannot be decoded."""

    @property
    def skips_missing(self) -> bool:
        """Whether items that are not in the cache are left out."""
        return self.bad_media == "skip"

    @model_validator(mode="before")
    @classmethod
    def _published_protocol(cls, values: Any) -> Any:
        """Fill in what the task's protocol prescribes and the user left open."""
        if isinstance(values, dict) and isinstance(task := values.get("task"), str):
            return PROTOCOLS.get(task, {}) | values
        return values

    def contradictions(self) -> list[str]:
        """Return what is wrong with the folds and the shares."""
        folds = [] if self.folds > 0 else [f"folds must be at least 1, not {self.folds}"]
        return super().contradictions() + folds
