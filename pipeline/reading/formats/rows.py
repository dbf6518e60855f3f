"""What every format is read into: rows of one item and one caption, by split."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.reading.problems import Problems


class CaptionRow(NamedTuple):
    """One caption of one image or video, unchecked."""

    item: str
    """Identifier of the image or video."""
    file: str
    """Its path within the media folder, or its name without folder or suffix."""
    caption: Any
    """The text; None for an item without captions."""
    place: str
    """Where it stands: "line 3"."""
    group: str | None = None


@dataclass
class Reading:
    """The rows of one split of one source, and what was unusable already."""

    source: str
    rows: list[CaptionRow] = field(default_factory=list)
    problems: Problems = field(init=False)

    def __post_init__(self) -> None:
        self.problems = Problems(self.source, noun="")


Readings = dict[str, Reading]
"""By split: "train" and perhaps "dev" and "test"."""
