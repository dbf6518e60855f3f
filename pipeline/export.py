"""Export: a run and its backbone become one ordinary transformers model, checked on the cache.

Cost: the weights in memory twice and on disk once (again for each traced artefact), and two passes
of every artefact over the replayed samples: seconds for a MiniLM, about a minute with ONNX.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cache import Cache, Fingerprint, FingerprintMismatch
from pipeline.backbones import TextBackbone, load_backbone
from pipeline.config import Config
from pipeline.data import load_dataset
from pipeline.evaluate import EvaluateConfig, evaluate, run_task
from pipeline.fused import artefacts
from pipeline.fused.build import ExportError
from pipeline.fused.folder import check_target
from pipeline.fused.write import Exportable, ExportReport, export_model
from pipeline.run import Run


class ExportConfig(Config):
    """Which run to export, where to, and in which forms."""

    run: Path
    """Folder of the trained run."""
    out: Path
    """Folder to write; it appears whole or not at all."""
    backbone: str | None = None
    """Local folder or hub id of the frozen text model; by default the one the cache names."""
    cache: Path | None = None
    """The cache the run was trained from; by default where it was then."""
    onnx: bool = False
    """Also write model.onnx, with any batch size and length (extra: onnx)."""
    torch_export: bool = False
    """Also write model.pt2, a torch.export archive with any batch size and length."""
    samples: int = Field(default=64, ge=1)
    """Cached samples to replay through every artefact."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the exported backbone's weights; auto is float32."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    force: bool = False
    """Replace an exported model at `out`."""


def export(config: ExportConfig) -> ExportReport:
    """Export the run `config.run` to the folder `config.out`.

    Raises:
        OutputExists: `config.out` is in use.
        ExportError: the run lacks something, or its backbone cannot be shipped.
        FingerprintMismatch: the cache or the backbone is not what the run was trained on.
        ExportParityError: an artefact disagrees with the cache; nothing is left behind.
        ExtraMissing: ONNX was asked for without its packages.
    """
    check_target(config.out, force=config.force)
    if config.onnx:
        artefacts.require_onnx()
    run = Run.open(config.run)
    cache = open_cache(run, config.cache)
    backbone = recorded_backbone(run, cache, config)
    return export_model(
        exportable(run, cache.path),
        backbone,
        cache,
        config.out,
        onnx=config.onnx,
        torch_export=config.torch_export,
        samples=config.samples,
        force=config.force,
    )


def open_cache(run: Run, path: Path | None = None) -> Cache:
    """Open the cache a run was trained from.

    Raises:
        FingerprintMismatch: another cache is there now.
    """
    cache = Cache.open(path or run.cache_path)
    trained_on = Fingerprint(run.info["cache"]["fingerprint"])
    if cache.fingerprint != trained_on:
        lines = trained_on.diff(cache.fingerprint, names=("trained on", "found"))
        raise FingerprintMismatch(
            f"{cache.path} is not the cache that {run.path} was trained from:\n  "
            + "\n  ".join(lines)
            + "\nGive the right one with `cache`"
        )
    return cache


def recorded_backbone(run: Run, cache: Cache, config: ExportConfig) -> TextBackbone:
    """Load the backbone of `cache` with the taps and the length limit recorded there.

    Raises:
        ExportError: nobody says which backbone it is.
    """
    name = config.backbone or cache.origin.get("backbone")
    if not name:
        raise ExportError(
            f"{cache.path} does not say where its backbone came from: give its folder or hub id as "
            "`backbone`"
        )
    return load_backbone(
        name,
        device="cpu",
        dtype="float32" if config.dtype == "auto" else config.dtype,
        taps=[tap.name for tap in cache.taps],
        max_length=cache.fingerprint.mapping.get("preprocessing", {}).get("max_length"),
        revision=config.revision or cache.origin.get("revision"),
    )


def exportable(run: Run, cache_path: Path) -> Exportable:
    """Collect what an exported folder needs from a run: weights, examples, metrics, settings."""
    dataset = load_dataset(run.data)
    splits = sorted(dataset.splits, key=lambda name: (name == "train", name == "dev"))
    settings = dict(run.info["config"])
    return Exportable(
        classifier=run.classifier(),
        taps=run.taps,
        labels=run.labels,
        segments=run.info["model"]["segments"],
        unscale=run_task(run, dataset).unscale,
        rows=[example.inputs for name in splits for example in dataset.splits[name]],
        metrics={split: _intervals(run, split, cache_path) for split in run.info["metrics"]},
        data=_without_folders(settings.pop("data")) | {"examples": run.info["examples"]},
        training={k: v for k, v in settings.items() if k not in ("cache", "out")},
    )


def _intervals(run: Run, split: str, cache_path: Path) -> dict[str, Any]:
    """Return the metrics of a split with their intervals, evaluating it if that was not done."""
    path = run.path / f"evaluation_{split}.json"
    if not path.is_file():
        evaluate(EvaluateConfig(run=run.path, split=split, cache=cache_path))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return found


def _without_folders(data: dict[str, Any]) -> dict[str, Any]:
    """Return a data configuration with the names of its files instead of their paths."""
    files = {name: Path(data[name]).name for name in ("train", "dev", "test") if data.get(name)}
    return {name: value for name, value in data.items() if value is not None} | files
