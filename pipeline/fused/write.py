"""Writes a checked fused model to a folder; the join of the other modules of this package.

Cost: the weights in memory twice and on disk once (again for each traced artefact), and two passes
of every artefact over the replayed samples: seconds for a MiniLM, about a minute with ONNX.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache import Cache, Fingerprint, FingerprintMismatch
from pipeline.backbones import TextBackbone
from pipeline.backbones.quiet import quiet_transformers
from pipeline.fused import artefacts, parity
from pipeline.fused.build import build_fused, build_tokenizer, model_inputs
from pipeline.fused.card import render_card
from pipeline.fused.folder import check_target, staged
from pipeline.fused.loading import load_fused
from pipeline.fused.modeling_unipt import UniPTForSequenceClassification
from pipeline.fused.package import source_files
from pipeline.fused.parity import ParityReport
from pipeline.fused.replay import Replay, Row, choose_replay
from unipt.classifier import SideClassifier

PARITY_FILE = "parity_report.json"
CARD_FILE = "README.md"


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A trained classifier with everything that an exported folder says about it.

    Attributes:
        classifier: the trained side classifier.
        taps: its taps, in order; the last one is the anchor.
        labels: class names; None for a regression.
        segments: 2 if an example is two sentences encoded separately, else 1.
        unscale: deviation and mean of a regression's targets, the measure of its errors; (1, 0)
            for classes.
        rows: inputs of examples to replay.
        metrics: split -> metric -> value or interval, for the model card.
        data: configuration of the data, for the model card.
        training: hyperparameters, for the model card.
    """

    classifier: SideClassifier
    taps: tuple[str, ...]
    labels: tuple[str, ...] | None
    segments: int
    unscale: tuple[float, float] = (1.0, 0.0)
    rows: Sequence[Row] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


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
    trained: Exportable,
    backbone: TextBackbone,
    cache: Cache,
    out: Path,
    *,
    onnx: bool = False,
    torch_export: bool = False,
    samples: int = 64,
    force: bool = False,
) -> ExportReport:
    """Export a trained classifier with its backbone; see `pipeline.export`.

    Args:
        trained: the classifier and what to say about it.
        backbone: the frozen model, with the taps of the cache.
        cache: the cache the classifier was trained from.
        out: folder to write; it appears whole or not at all.
        onnx: also write `model.onnx`.
        torch_export: also write `model.pt2`.
        samples: how many cached samples to replay.
        force: replace an exported model at `out`.

    Raises:
        OutputExists, ExportError, FingerprintMismatch, TokenizerError, ExtraMissing,
        ExportParityError: as they say; nothing is left behind under the name `out`.
    """
    storage_type = str(cache.dtype).removeprefix("torch.")
    check_target(out, force=force)
    check_backbone(backbone, cache)
    classifier = trained.classifier.eval()
    replay = choose_replay(cache, classifier, trained.taps, trained.rows, samples=samples)
    with staged(out, force=force) as stage:
        model, tokenizer = _write_model(trained, backbone, storage_type, stage)
        encode = _Encoder(tokenizer, replay, model)
        example = encode(range(2) if len(replay.rows) > 1 else (0, 0), 0)
        runners: dict[str, artefacts.Runner] = {"transformers": artefacts.eager_runner(model)}
        if torch_export:
            runners["torch_export"] = artefacts.write_pt2(model, example, stage)
        if onnx:
            runners["onnx"] = artefacts.write_onnx(model, example, stage)
        report = parity.replay(
            runners,
            encode,
            replay.logits,
            types=_number_types(cache, model),
            unscale=trained.unscale,
        )
        parity.check(report)
        _write_json(stage / PARITY_FILE, report.to_dict())
        card = _card(trained, backbone, cache, name=out.name, model=model, report=report)
        (stage / CARD_FILE).write_text(card, encoding="utf-8")
        files = {path.name: path.stat().st_size for path in sorted(stage.iterdir())}
    return ExportReport(path=out, files=files, parameters=_count(model), parity=report)


def check_backbone(backbone: TextBackbone, cache: Cache) -> None:
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


class _Encoder:
    """Tokenises replayed rows; the `parity.Encoder` of one exported model."""

    def __init__(
        self, tokenizer: Any, replay: Replay, model: UniPTForSequenceClassification
    ) -> None:
        self.tokenizer, self.rows = tokenizer, replay.rows
        self.config: Any = model.config

    def __call__(self, positions: Sequence[int], extra: int) -> dict[str, Tensor]:
        rows = [self.rows[i] for i in positions]
        return model_inputs(self.tokenizer, rows, self.config, extra=extra)


def _write_model(
    trained: Exportable, backbone: TextBackbone, storage_type: str, stage: Path
) -> tuple[UniPTForSequenceClassification, Any]:
    """Write weights, configuration, tokenizer and sources; return both as read back."""
    fused = build_fused(
        backbone,
        trained.classifier,
        trained.taps,
        segments=trained.segments,
        labels=trained.labels,
        storage_type=storage_type,
    )
    with quiet_transformers():
        fused.save_pretrained(stage)
    build_tokenizer(backbone, trained.segments).save_pretrained(stage)
    for name, text in source_files().items():
        (stage / name).write_text(text, encoding="utf-8")
    del fused
    return load_fused(stage)


def _number_types(cache: Cache, model: UniPTForSequenceClassification) -> dict[str, str]:
    computed = cache.fingerprint.mapping.get("dtype", {}).get("computed", "float32")
    return {
        "stored": str(cache.dtype).removeprefix("torch."),
        "computed": str(computed),
        "weights": str(model.dtype).removeprefix("torch."),
    }


def _count(model: UniPTForSequenceClassification) -> dict[str, int]:
    parts: dict[str, torch.nn.Module] = {
        "backbone (frozen)": model.backbone,
        "side classifier": model.side_classifier,
    }
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def _card(
    trained: Exportable,
    backbone: TextBackbone,
    cache: Cache,
    *,
    name: str,
    model: UniPTForSequenceClassification,
    report: ParityReport,
) -> str:
    return render_card(
        name=name,
        backbone=Path(backbone.name).name,
        labels=trained.labels,
        pairs=trained.segments == 2 or any(row[0].pair is not None for row in trained.rows),
        taps=trained.taps,
        parameters=_count(model),
        metrics=trained.metrics,
        data=trained.data,
        training=trained.training,
        fingerprint=cache.fingerprint.mapping,
        parity=report.render(),
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
