"""Predict: label the texts or files of a list, a folder or standard input with an exported model.

They are read in windows of `WINDOW` batches; in a window they are run in batches of like length
and written in their own order. Memory is flat in their number; the cost is one forward pass of the
fused model each.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.fused.loading import load_exported
from pipeline.fused.records import SUFFIXES, Record, TextFormat, read_records
from pipeline.reading.media import MediaFolder
from pipeline.systems.inference import choose_device

WINDOW = 16
"""Batches that are read, sorted by length and written at a time."""
Callback = Callable[[int], None]
"""Told the number of texts labelled so far."""


class PredictConfig(Config):
    """Which exported model labels which texts, and where the labels go."""

    model: Path
    """Folder of an exported model."""
    input: Path | None = None
    """File of texts (or paths of media files): .tsv, .csv, .jsonl, or plain lines; or a folder of
    media files; standard input if absent."""
    out: Path | None = None
    """File to write, one line a text; standard output if absent."""
    layout: Literal["auto", "lines", "tsv", "csv", "jsonl"] = "auto"
    """How the input is written; auto goes by the file's suffix and takes plain lines else."""
    format: Literal["jsonl", "tsv"] = "jsonl"
    """How the labels are written."""
    text: str = "text"
    """Column of the (first) text."""
    text_pair: str | None = None
    """Column of the second text; for plain lines any value splits each line at its tab."""
    batch_size: int = Field(default=32, ge=1)
    """Texts of a forward pass."""
    device: str = "auto"
    """Torch device; auto takes cuda, then mps, then cpu."""
    trust_code: bool = False
    """Run the model code in the folder where it is not this version's own."""
    force: bool = False
    """Replace `out` if it exists."""


class PredictError(PipelineError, ValueError):
    """The texts cannot be labelled; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class PredictReport:
    """How many texts were labelled, and the lines (1-based) that were empty."""

    labelled: int
    empty_lines: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"empty_lines": list(self.empty_lines)}

    def render(self) -> str:
        """Return the report as lines of text."""
        if not self.empty_lines:
            return f"{self.labelled:,} texts labelled"
        shown = ", ".join(map(str, self.empty_lines[:10]))
        more = ", ..." if len(self.empty_lines) > 10 else ""
        return (
            f"{self.labelled:,} texts labelled; {len(self.empty_lines):,} empty line(s) have no "
            f"label: {shown}{more}"
        )


def predict(
    config: PredictConfig,
    *,
    source: Iterable[str] | None = None,
    sink: IO[str] | None = None,
    progress: Callback | None = None,
) -> PredictReport:
    """Label every text of the input, in order, writing as it goes.

    Args:
        config: what to do.
        source: lines to read in place of `config.input`.
        sink: where to write in place of `config.out`.
        progress: called after each window.

    Raises:
        NotAnExport: the folder is no exported model that labels texts, or its code is not ours.
        PredictError: `out` exists, or pairs are given as single texts.
        RecordError: a line cannot be read.
    """
    if sink is None and config.out is not None and config.out.exists() and not config.force:
        raise PredictError(f"{config.out} exists: choose another file, or force=True")
    model = load_exported(config.model, "predict", trust_code=config.trust_code)
    model.to(choose_device(config.device))
    if model.compares and config.text_pair is None:
        raise PredictError("this model compares two texts: name the second one's column, text_pair")
    labelled, empty = 0, []
    with ExitStack() as files:
        lines = source if source is not None else _open_input(config, files)
        records = read_records(lines, _layout(config), text=config.text, text_pair=config.text_pair)
        write = _writer(sink or _open_output(config, files), config.format, model.no_record)
        while window := list(islice(records, WINDOW * config.batch_size)):
            full = [record for record in window if record.text is not None]
            found = label(model, full, config.batch_size)
            for record in window:
                write(record.line, found.get(record.line))
            labelled += len(full)
            empty += [record.line for record in window if record.text is None]
            if progress:
                progress(labelled)
    return PredictReport(labelled=labelled, empty_lines=tuple(empty))


def label(model: Any, records: Sequence[Record], batch_size: int) -> dict[int, dict[str, Any]]:
    """Return what an exported model says of each record, by its line.

    Args:
        model: with a `predict`.
        records: none of them empty; they are run in batches of like length.
        batch_size: texts of a forward pass.
    """
    order = sorted(records, key=lambda record: -sum(len(part or "") for part in record[1:]))
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(order), batch_size):
        lines, texts, pairs = zip(*order[start : start + batch_size], strict=True)
        said = model.predict(texts, None if pairs[0] is None else pairs)
        found |= zip(lines, said, strict=True)
    return found


def _layout(config: PredictConfig) -> TextFormat:
    if config.layout != "auto":
        return config.layout
    return SUFFIXES.get(config.input.suffix.lower() if config.input else "", "lines")


def _open_input(config: PredictConfig, files: ExitStack) -> Iterable[str]:
    if config.input is None:
        return sys.stdin
    if config.input.is_dir():
        folder = MediaFolder(config.input)
        return [str(folder.root / file) for file in folder.files]
    return files.enter_context(config.input.open(encoding="utf-8", newline=""))


def _open_output(config: PredictConfig, files: ExitStack) -> IO[str]:
    if config.out is None:
        return sys.stdout
    return files.enter_context(config.out.open("w", encoding="utf-8", newline=""))


def _writer(
    sink: IO[str], form: Literal["jsonl", "tsv"], empty: Mapping[str, Any]
) -> Callable[[int, Mapping[str, Any] | None], None]:
    """Return what writes one line: the number of the input line, and its record or None.

    Args:
        sink: takes the lines.
        form: of a line; in a table, a mapping in a record has a column for each of its names.
        empty: a record without values.
    """
    table: Any = csv.writer(sink, delimiter="\t", lineterminator="\n")
    if form == "tsv":
        table.writerow(["line", *_flat(empty)])

    def write(line: int, record: Mapping[str, Any] | None) -> None:
        if form == "tsv":
            values = _flat(record or empty).values()
            table.writerow([line, *map(_cell, values)])
            return
        said = record or dict.fromkeys(empty)
        sink.write(json.dumps({"line": line, **said}, ensure_ascii=False) + "\n")

    return write


def _cell(value: Any) -> Any:
    """Return a value as it stands in a table: nothing for None, a list's parts and spaces."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else value


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        found |= value if isinstance(value, Mapping) else {name: value}
    return found
