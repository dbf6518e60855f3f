"""Writes a checked fused model to a folder: what the exports of all kinds of runs share.

A `Job` brings the model, its tokenizer, what is traced and compared, and the words of its card.
Cost: the weights in memory twice and on disk once (again for each traced artefact), and two passes
of every artefact over the replayed samples: seconds for a MiniLM, about a minute with ONNX.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from cache import Cache, Fingerprint, FingerprintMismatch
from pipeline.backbones.base import Backbone
from pipeline.backbones.quiet import quiet_transformers
from pipeline.fused import parity
from pipeline.fused.artefacts import Form
from pipeline.fused.folder import check_target, staged
from pipeline.fused.loading import load_fused
from pipeline.fused.package import source_files
from pipeline.fused.parity import ParityReport, Part

PARITY_FILE = "parity_report.json"
CARD_FILE = "README.md"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the card of an exported folder says about the run.

    Attributes:
        metrics: split -> metric -> value or interval.
        data: configuration of the data.
        training: hyperparameters.
    """

    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


class Job(Protocol):
    """The export of one kind of run."""

    @property
    def model_type(self) -> str:
        """Its `model_type` in config.json."""

    @property
    def outputs(self) -> str:
        """What is compared with the cache: "logits" or "embeddings"."""

    def check(self) -> None:
        """Check, before anything is written, that this can be exported; may raise anything."""

    def build(self) -> tuple[Any, Any]:
        """Return the fused model, with weights of its own, and its tokenizer."""

    def parts(self, model: Any, tokenizer: Any, folder: Path, forms: Sequence[Form]) -> list[Part]:
        """Trace `forms` of the written model into `folder`; return what is to be compared."""

    def modules(self, model: Any) -> dict[str, nn.Module]:
        """Return the parts of the model whose parameters are counted."""

    def card(self, name: str, parameters: Mapping[str, int], report: ParityReport) -> str:
        """Return the model card of the folder `name`."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written: the folder, its files with their bytes, and the parity report."""

    path: Path
    files: dict[str, int]
    parameters: dict[str, int]
    parity: ParityReport

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "path": str(self.path),
            "files": self.files,
            "parameters": self.parameters,
            "parity": self.parity.to_dict(),
        }

    def render(self) -> str:
        """Return the report as lines of text."""
        total = sum(self.files.values())
        parts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        head = f"{self.path}: {len(self.files)} files, {total:,} bytes; parameters: {parts}"
        return f"{head}\n{self.parity.render()}"


def export_model(
    job: Job, out: Path, *, forms: Sequence[Form] = (), force: bool = False
) -> ExportReport:
    """Export a trained run with its backbone(s); see `pipeline.export`.

    Args:
        job: what to export.
        out: folder to write; it appears whole or not at all.
        forms: traced artefacts to write beside the model.
        force: replace an exported model at `out`.

    Raises:
        OutputExists, ExportError, FingerprintMismatch, TokenizerError, ExtraMissing,
        ExportParityError: as they say; nothing is left behind under the name `out`.
    """
    check_target(out, force=force)
    job.check()
    with staged(out, force=force) as stage:
        model, tokenizer = _write_model(job, stage)
        report = parity.replay(job.parts(model, tokenizer, stage, forms), outputs=job.outputs)
        parity.check(report)
        _write_json(stage / PARITY_FILE, report.to_dict())
        counts = {
            name: sum(p.numel() for p in part.parameters())
            for name, part in job.modules(model).items()
        }
        (stage / CARD_FILE).write_text(job.card(out.name, counts, report), encoding="utf-8")
        files = {path.name: path.stat().st_size for path in sorted(stage.iterdir())}
    return ExportReport(path=out, files=files, parameters=counts, parity=report)


def check_backbone(backbone: Backbone, cache: Cache) -> None:
    """Compare a backbone with the one a cache was computed by.

    Raises:
        FingerprintMismatch: weights, preprocessing or taps differ; the message shows the lines.
    """
    now = backbone.fingerprint_parts()
    recorded = cache.fingerprint.mapping
    then = {name: recorded.get(name) for name in now}
    lines = Fingerprint(then).diff(Fingerprint(now))
    if lines:
        raise FingerprintMismatch(
            f"{backbone.name} is not the backbone that {cache.path} was computed by:\n  "
            + "\n  ".join(lines)
            + "\nGive the right one with `backbone`, or extract and train again"
        )


def number_types(cache: Cache, weights: nn.Module) -> dict[str, str]:
    """Return the number types between a cache and an exported backbone, by role; the coarsest."""
    computed = cache.fingerprint.mapping.get("dtype", {}).get("computed", "float32")
    return {
        "stored": max(cache.geometry.types.values(), key=parity.UNIT_ROUNDOFF.__getitem__),
        "computed": str(computed),
        "weights": str(next(weights.parameters()).dtype).removeprefix("torch."),
    }


def storage_type(cache: Cache) -> str | Mapping[str, str]:
    """Return the number type of a cache, such as "float16", or of each tap."""
    return cache.geometry.dtype


def _write_model(job: Job, stage: Path) -> tuple[Any, Any]:
    """Write weights, configuration, tokenizer and sources; return both as read back."""
    fused, tokenizer = job.build()
    with quiet_transformers():
        fused.save_pretrained(stage)
    tokenizer.save_pretrained(stage)
    for name, text in source_files(job.model_type).items():
        (stage / name).write_text(text, encoding="utf-8")
    del fused
    return load_fused(stage)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
