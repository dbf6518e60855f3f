"""Writes a fused model to a folder, whole and checked against the cache, or not at all.

Cost: the weights in memory twice and on disk once (again for each traced artefact), and two passes
of every artefact over the replayed samples: seconds for a MiniLM, about a minute with ONNX.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache import Cache
from pipeline.backbones.quiet import quiet_transformers
from pipeline.fused import parity
from pipeline.fused.artefacts import Form, write_artefact
from pipeline.fused.build import build_fused, build_tokenizer
from pipeline.fused.card import render_card
from pipeline.fused.folder import check_target, staged
from pipeline.fused.job import Job, check_backbone
from pipeline.fused.loading import load_fused
from pipeline.fused.modeling_unipt import UniPTModel
from pipeline.fused.package import source_files
from pipeline.fused.parity import ParityReport, Part, Runner
from pipeline.fused.replay import Replay, choose_replays

PARITY_FILE = "parity_report.json"
CARD_FILE = "README.md"


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
    """Export a trained side model with its backbones; see `pipeline.export`.

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
    for tower in job.own:
        check_backbone(job.backbones[tower], job.setup.caches[tower])
    replays = choose_replays(job)
    with staged(out, force=force) as stage:
        model = _write_model(job, stage)
        report = parity.replay(passes_of(job, model, replays, stage, forms))
        parity.check(report)
        _write_json(stage / PARITY_FILE, report.to_dict())
        counts = {
            f"{tower} backbone (frozen)": _count(model.tower(tower).backbone) for tower in job.own
        } | {"side model": _count(model.side)}
        card = render_card(job, model, out.name, counts, report)
        (stage / CARD_FILE).write_text(card, encoding="utf-8")
        files = {path.name: path.stat().st_size for path in sorted(stage.iterdir())}
    return ExportReport(path=out, files=files, parameters=counts, parity=report)


def passes_of(
    job: Job,
    model: UniPTModel,
    replays: Sequence[Replay],
    folder: Path,
    forms: Sequence[Form] = (),
) -> list[Part]:
    """Return what is to be compared, a part an inference pass; write traced artefacts.

    Args:
        job: what is exported.
        model: the fused model.
        replays: of each pass.
        folder: takes the artefacts.
        forms: of these.
    """
    references = [model.compared(each.outputs) for each in replays]
    parts = []
    for number, each in enumerate(replays):
        others = [found for place, found in enumerate(references) if place != number]
        towers = [tower for tower in job.own if tower in each.towers]
        encode = partial(_encode, model, each)
        runners: dict[str, Runner] = {"transformers": partial(_run_eager, model)}
        for form in forms:
            run = write_artefact(model, each.towers, encode((0, 0), 0), form, folder)
            runners[form] = partial(_run_traced, model, each.towers, run)
        parts.append(
            Part(
                runners=runners,
                encode=encode,
                reference=references[number],
                answers=partial(model.answers, others=others),
                types=_coarsest(
                    [number_types(job.setup.caches[t], model.tower(t)) for t in towers]
                ),
                name="+".join(towers) if others else "",
            )
        )
    return parts


def number_types(cache: Cache, weights: nn.Module) -> dict[str, str]:
    """Return the number types between a cache and an exported backbone, by role; the coarsest."""
    computed = cache.fingerprint.mapping.get("dtype", {}).get("computed", "float32")
    return {
        "stored": max(cache.geometry.types.values(), key=parity.UNIT_ROUNDOFF.__getitem__),
        "computed": str(computed),
        "weights": str(next(weights.parameters()).dtype).removeprefix("torch."),
    }


def _coarsest(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {
        role: max((each[role] for each in found), key=parity.UNIT_ROUNDOFF.__getitem__)
        for role in found[0]
    }


def _encode(
    model: UniPTModel, replay: Replay, positions: Sequence[int], extra: int
) -> dict[str, Tensor]:
    return model.inputs(replay.take(positions), extra=extra)


def _run_eager(model: UniPTModel, inputs: Mapping[str, Tensor]) -> Tensor:
    return model.compared(model.run(**inputs))


def _run_traced(
    model: UniPTModel, towers: Sequence[str], run: Any, inputs: Mapping[str, Tensor]
) -> Tensor:
    with torch.inference_mode():
        return model.compared(model.from_traced(towers, run, inputs))


def _count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def _write_model(job: Job, stage: Path) -> UniPTModel:
    """Write weights, configuration, tokenizer and sources; return the model as read back."""
    fused, tokenizer = build_fused(job), build_tokenizer(job)
    with quiet_transformers():
        fused.save_pretrained(stage)
    for each in (*fused.processors(), *([tokenizer] if tokenizer is not None else [])):
        each.save_pretrained(stage)
    for name, text in source_files(job.setup.system.api).items():
        (stage / name).write_text(text, encoding="utf-8")
    del fused
    model: UniPTModel = load_fused(stage)
    return model


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
