"""The configuration of a retrieval data set: which files, which columns, which protocol."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from pipeline.config import Config
from pipeline.reading.config import Column
from pipeline.reading.tables import EncodingErrors

PROTOCOLS: dict[str, dict[str, Any]] = {"coco": {"folds": 5}, "msvd": {"m2t_over": "items"}}
"""What a task changes of the defaults: its published protocol."""


class RetrievalData(Config):
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
    header: bool = True
    """Whether TSV and CSV files start with a line of column names."""
    fractions: tuple[float, float, float] = (0.68, 0.12, 0.20)
    """Shares of train, dev and test where rows must be split; groups stay together."""
    split_seed: int = 0
    """Seed of that split."""
    fit_on_dev: bool = False
    """Add the development rows to the training rows: for the last fit, once every setting is
    chosen. There is no dev split then, and training keeps its last epoch."""
    folds: int = 1
    """Equal runs of the test items whose metrics are averaged besides those of all (coco: 5)."""
    m2t_over: Literal["captions", "items"] = "captions"
    """What a picture or clip ranks: every caption, or each item by its best caption (msvd)."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with empty captions, unknown files, duplicates, wrong numbers of fields."""
    bad_media: Literal["error", "skip"] = "error"
    """What to do with pictures and clips that cannot be decoded."""
    encoding_errors: EncodingErrors = "strict"
    """Bytes that are not UTF-8: "strict" refuses the file, "replace" marks them."""

    @property
    def kind(self) -> str:
        """The family of the task: "retrieval"."""
        return "retrieval"

    @model_validator(mode="before")
    @classmethod
    def _published_protocol(cls, values: Any) -> Any:
        """Fill in what the task's protocol prescribes and the user left open."""
        if isinstance(values, dict) and isinstance(task := values.get("task"), str):
            return PROTOCOLS.get(task, {}) | values
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6 or not self.fractions[0]:
            problems.append(f"fractions must be shares that sum to 1, not {self.fractions}")
        if self.folds < 1:
            problems.append(f"folds must be at least 1, not {self.folds}")
        if problems:
            raise ValueError("; ".join(problems))
        return self
