"""Predict: label the texts of a file or of standard input with an exported model.

Texts are read in windows of `WINDOW` batches; in a window they are run in batches of like length
and written in their own order. Memory is flat in the number of texts; the cost is one forward pass
of the fused model a text.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.fused.build import model_inputs
from pipeline.fused.loading import load_exported
from pipeline.fused.records import SUFFIXES, TextFormat, read_records
from pipeline.inputs import TextInput
from pipeline.training.inference import choose_device

WINDOW = 16
"""Batches that are read, sorted by length and written at a time."""
Callback = Callable[[int], None]
"""Told the number of texts labelled so far."""


class PredictConfig(Config):
    """Which exported model labels which texts, and where the labels go."""

    model: Path
    """Folder of an exported model."""
    input: Path | None = None
    """File of texts: .tsv, .csv, .jsonl, or plain lines; standard input if absent."""
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


class Predictor:
    """An exported model and its tokenizer.

    Args:
        folder: of the exported model.
        device: torch device, or "auto".
        trust_code: run the folder's own model code if it differs from this version's.

    Raises:
        NotAnExport: the folder is no exported model, or its code is not this version's.
    """

    def __init__(self, folder: Path, *, device: str = "auto", trust_code: bool = False) -> None:
        self.model, self.tokenizer = load_exported(folder, trust_code=trust_code)
        self.model.to(choose_device(device))
        names = self.model.config.id2label
        self.labels = [str(names[i]) for i in range(len(names))]
        self.regression = self.model.config.problem_type == "regression"

    def outputs(self, rows: Sequence[Sequence[TextInput]], batch_size: int = 32) -> Tensor:
        """Return probabilities [n, labels], or scores [n, 1] of a regression, in order."""
        order = sorted(range(len(rows)), key=lambda i: -sum(map(_size, rows[i])))
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for i, values in zip(chosen, self._run([rows[i] for i in chosen]), strict=True):
                found[i] = values
        return torch.stack(found) if found else torch.empty(0, len(self.labels))

    @torch.inference_mode()
    def _run(self, rows: Sequence[Sequence[TextInput]]) -> Tensor:
        inputs = model_inputs(self.tokenizer, rows, self.model.config)
        moved = {name: value.to(self.model.device) for name, value in inputs.items()}
        logits: Tensor = self.model(**moved).logits.float().cpu()
        return logits if self.regression else logits.softmax(-1)

    def row_of(self, text: str, pair: str | None = None) -> tuple[TextInput, ...]:
        """Return an example as the model takes it: one input, or two sentences."""
        if self.model.config.segments == 2:
            return TextInput(text), TextInput(str(pair))
        return (TextInput(text, pair),)


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
        NotAnExport: see `Predictor`.
        PredictError: `out` exists, or pairs are given as single texts.
        RecordError: a line cannot be read.
    """
    if sink is None and config.out is not None and config.out.exists() and not config.force:
        raise PredictError(f"{config.out} exists: choose another file, or force=True")
    predictor = Predictor(config.model, device=config.device, trust_code=config.trust_code)
    if predictor.model.config.segments == 2 and config.text_pair is None:
        raise PredictError("this model compares two texts: name the second one's column, text_pair")
    labelled, empty = 0, []
    with ExitStack() as files:
        lines = source if source is not None else _open_input(config, files)
        records = read_records(lines, _layout(config), text=config.text, text_pair=config.text_pair)
        write = _writer(sink or _open_output(config, files), config.format, predictor)
        while window := list(islice(records, WINDOW * config.batch_size)):
            full = [record for record in window if record.text is not None]
            outputs = predictor.outputs(
                [predictor.row_of(str(r.text), r.pair) for r in full], config.batch_size
            )
            values = iter(outputs.tolist())
            for record in window:
                write(record.line, None if record.text is None else next(values))
            labelled += len(full)
            empty += [record.line for record in window if record.text is None]
            if progress:
                progress(labelled)
    return PredictReport(labelled=labelled, empty_lines=tuple(empty))


def _size(item: TextInput) -> int:
    return len(item.text) + len(item.pair or "")


def _layout(config: PredictConfig) -> TextFormat:
    if config.layout != "auto":
        return config.layout
    return SUFFIXES.get(config.input.suffix.lower() if config.input else "", "lines")


def _open_input(config: PredictConfig, files: ExitStack) -> Iterable[str]:
    if config.input is None:
        return sys.stdin
    return files.enter_context(config.input.open(encoding="utf-8", newline=""))


def _open_output(config: PredictConfig, files: ExitStack) -> IO[str]:
    if config.out is None:
        return sys.stdout
    return files.enter_context(config.out.open("w", encoding="utf-8", newline=""))


def _writer(
    sink: IO[str], form: Literal["jsonl", "tsv"], predictor: Predictor
) -> Callable[[int, list[float] | None], None]:
    """Return what writes one line: the number of the input line, and its outputs or None."""
    table: Any = csv.writer(sink, delimiter="\t", lineterminator="\n")
    names = [] if predictor.regression else predictor.labels
    if form == "tsv":
        table.writerow(["line", *([] if predictor.regression else ["label"]), "score", *names])

    def write(line: int, values: list[float] | None) -> None:
        record = _describe(line, values, predictor)
        if form == "jsonl":
            sink.write(json.dumps(record, ensure_ascii=False) + "\n")
            return
        listed = record.pop("probabilities", None) or {}
        table.writerow(["" if v is None else v for v in _cells(record, listed, names)])

    return write


def _cells(record: dict[str, Any], listed: dict[str, float], names: list[str]) -> Iterator[Any]:
    yield from record.values()
    yield from (listed.get(name) for name in names)


def _describe(line: int, values: list[float] | None, predictor: Predictor) -> dict[str, Any]:
    if predictor.regression:
        return {"line": line, "score": None if values is None else values[0]}
    if values is None:
        return {"line": line, "label": None, "score": None, "probabilities": None}
    best = max(range(len(values)), key=values.__getitem__)
    listed = dict(zip(predictor.labels, values, strict=True))
    return {
        "line": line,
        "label": predictor.labels[best],
        "score": values[best],
        "probabilities": listed,
    }
