"""Export: a run and its backbone(s) become one ordinary transformers model, checked on the cache.

Cost: the weights in memory twice and on disk once (again for each traced artefact), and two passes
of every artefact over the replayed samples: seconds for a MiniLM, about a minute with ONNX.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cache import Cache
from pipeline.backbones import Backbone, load_backbone
from pipeline.backbones.convnets.build import ARCHITECTURES
from pipeline.backbones.pooled_taps import recorded_pool
from pipeline.config import Config
from pipeline.evaluate import EvaluateConfig, evaluate, run_setup
from pipeline.fused import artefacts
from pipeline.fused.artefacts import Form
from pipeline.fused.folder import check_target
from pipeline.fused.job import ExportError, Facts, Job
from pipeline.fused.write import ExportReport, export_model
from pipeline.inputs import FACTS
from pipeline.run import Run, by_tower

REPLAYED = ("test", "dev", "train")
"""Splits whose examples are replayed, as many as are needed."""


class ExportConfig(Config):
    """Which run to export, where to, and in which forms."""

    run: Path
    """Folder of the trained run."""
    out: Path
    """Folder to write; it appears whole or not at all."""
    backbone: tuple[str, ...] = ()
    """Local folder or hub id of the frozen model, by default as the cache says; of a run of several
    towers TOWER=PLACE (repeatable)."""
    cache: tuple[str, ...] = ()
    """Where a cache of the run is now, if it has moved since the training; of a run of several
    towers TOWER=PLACE (repeatable)."""
    onnx: bool = False
    """Also write ONNX, with any batch and length, a file a tower where towers run alone (extra:
    onnx)."""
    torch_export: bool = False
    """Also write torch.export archives (.pt2), as --onnx."""
    samples: int = Field(default=64, ge=1)
    """Cached samples of each tower to replay through every artefact."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the exported backbone's weights; auto is float32."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    force: bool = False
    """Replace an exported model at `out`."""

    @property
    def forms(self) -> tuple[Form, ...]:
        """The traced artefacts to write."""
        chosen: dict[Form, bool] = {"torch_export": self.torch_export, "onnx": self.onnx}
        return tuple(form for form, wanted in chosen.items() if wanted)


def export(config: ExportConfig) -> ExportReport:
    """Export the run `config.run` to the folder `config.out`.

    Raises:
        OutputExists: `config.out` is in use.
        ConfigError: an option names no tower of the run.
        ExportError: a cache lacks something, or its backbone cannot be shipped.
        FingerprintMismatch: a cache or a backbone is not what the run was trained on.
        DataError: the run's examples are gone, or not in the caches.
        ExportParityError: an artefact disagrees with the cache; nothing is left behind.
        ExtraMissing: ONNX was asked for without its packages.
    """
    check_target(config.out, force=config.force)
    if config.onnx:
        artefacts.require_onnx()
    run = Run.open(config.run)
    return export_model(export_job(run, config), config.out, forms=config.forms, force=config.force)


def export_job(run: Run, config: ExportConfig) -> Job:
    """Collect what an exported folder needs: weights, backbones, examples, metrics, settings."""
    setup = run_setup(run, _splits(run, config.samples), moved=config.cache, device="cpu")
    given = by_tower(config.backbone, run.towers, "backbone")
    loaded: dict[tuple[str, str | None], Backbone] = {}
    backbones = {}
    for tower, cache in setup.caches.items():
        key = str(cache.path), given.get(tower)
        if key not in loaded:
            loaded[key] = recorded_backbone(cache, config, given.get(tower))
        backbones[tower] = loaded[key]
    return Job(
        setup=setup,
        model=run.model(),
        backbones=backbones,
        samples=config.samples,
        facts=_facts(run, config),
    )


def _splits(run: Run, samples: int) -> tuple[str, ...]:
    """Return the splits that together have enough examples to replay."""
    chosen: list[str] = []
    found = 0
    for name in REPLAYED:
        counts = run.info["examples"].get(name)
        if counts and found < samples:
            chosen.append(name)
            found += min(counts.values())
    return tuple(chosen)


def recorded_backbone(cache: Cache, config: ExportConfig, given: str | None) -> Backbone:
    """Load the backbone of `cache` with the taps and the preprocessing recorded there.

    Args:
        cache: the cache.
        config: the export.
        given: the backbone's folder or hub id, if the user named it.

    Raises:
        ExportError: nobody says which backbone it is.
    """
    name = given or cache.provenance.get("backbone")
    if not name:
        raise ExportError(
            f"{cache.path} does not say where its backbone came from: give its folder or hub id as "
            "`backbone`"
        )
    recorded = cache.fingerprint.mapping
    names = [tap.name for tap in cache.taps]
    backbone = load_backbone(
        name,
        device="cpu",
        dtype="float32" if config.dtype == "auto" else config.dtype,
        taps=[tap for tap in names if tap not in FACTS],
        architecture=_architecture(recorded),
        revision=config.revision or cache.provenance.get("revision"),
        pool=recorded_pool(recorded.get("taps", {})),
        **_preprocessing(recorded.get("preprocessing", {})),
    )
    return backbone.with_facts(tuple(tap for tap in names if tap in FACTS))


def _preprocessing(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load_backbone` that make inputs as a fingerprint records them."""
    if "image" not in recorded:
        return {"tower": "text", "max_length": recorded.get("max_length")}
    found = {name: recorded[name] for name in ("fps", "max_frames") if name in recorded}
    size = tuple(recorded["image"]["size"])
    return {"tower": recorded["modality"], "image_size": size, **found}


def _architecture(recorded: Mapping[str, Any]) -> str | None:
    model_type = recorded.get("weights", {}).get("model_type")
    return str(model_type) if model_type in ARCHITECTURES else None


def _facts(run: Run, config: ExportConfig) -> Facts:
    """Return what the card says; metrics have intervals, a split is evaluated if it was not."""
    metrics = {}
    for split in run.info["metrics"]:
        path = run.path / f"evaluation_{split}.json"
        if not path.is_file():
            evaluate(EvaluateConfig(run=run.path, split=split, cache=config.cache))
        metrics[split] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    settings = dict(run.info["config"])
    data = _without_folders(settings.pop("data")) | {"examples": run.info["examples"]}
    places = (*run.config.caches(), "out")
    training = {name: value for name, value in settings.items() if name not in places}
    return Facts(metrics=metrics, data=data, training=training)


def _without_folders(data: dict[str, Any]) -> dict[str, Any]:
    """Return a data configuration with the names of its files instead of their paths."""
    places = ("train", "dev", "test", "media")
    files = {name: Path(data[name]).name for name in places if data.get(name)}
    return {name: value for name, value in data.items() if value is not None} | files
