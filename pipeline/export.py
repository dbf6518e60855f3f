"""Export: a run and its backbone(s) become one ordinary transformers model, checked on the cache.

Cost: the weights in memory twice and on disk once (again for each traced artefact), and two passes
of every artefact over the replayed samples: seconds for a MiniLM, about a minute with ONNX.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cache import Cache
from cache.storage.location import Location
from pipeline.backbones import Backbone, Modality, TextBackbone, load_backbone
from pipeline.backbones.convnets.build import ARCHITECTURES
from pipeline.backbones.image import ImageBackbone
from pipeline.backbones.pooled_taps import recorded_pool
from pipeline.backbones.weights_file import SUFFIXES
from pipeline.config import Config
from pipeline.data import load_dataset
from pipeline.evaluate import evaluate, run_task
from pipeline.fused import artefacts
from pipeline.fused.artefacts import Form
from pipeline.fused.build import ExportError
from pipeline.fused.classifier import ClassifierJob, TrainedClassifier
from pipeline.fused.folder import check_target
from pipeline.fused.retrieval import RetrievalJob, TrainedTowers
from pipeline.fused.write import ExportReport, Facts, Job, export_model
from pipeline.inputs import TextInput
from pipeline.places import Place
from pipeline.retrieval.data import load_retrieval
from pipeline.retrieval.evaluate import evaluate_retrieval, run_caches, run_data
from pipeline.run import Run
from pipeline.training.evaluation import EvaluateConfig, open_cache


class ExportConfig(Config):
    """Which run to export, where to, and in which forms."""

    run: Path
    """Folder of the trained run."""
    out: Path
    """Folder to write; it appears whole or not at all."""
    backbone: str | None = None
    """Classifiers: local folder or hub id of the frozen model; by default as the cache says."""
    cache: Place | None = None
    """Classifiers: the cache the run was trained from; by default where it was then."""
    text_backbone: str | None = None
    """Two towers: as --backbone, of the texts."""
    media_backbone: str | None = None
    """Two towers: as --backbone, of the pictures or clips."""
    text_cache: Place | None = None
    """Two towers: as --cache, of the texts."""
    media_cache: Place | None = None
    """Two towers: as --cache, of the pictures or clips."""
    onnx: bool = False
    """Also write model.onnx, or text.onnx and image.onnx, with any batch and length (extra: onnx).
    """
    torch_export: bool = False
    """Also write model.pt2, or text.pt2 and image.pt2: torch.export archives, as --onnx."""
    samples: int = Field(default=64, ge=1)
    """Cached samples (texts, and as many pictures or clips) to replay through every artefact."""
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
    """Export the run `config.run`, of whatever kind, to the folder `config.out`.

    Raises:
        OutputExists: `config.out` is in use.
        ExportError: the run lacks something, its backbone cannot be shipped, or an option belongs
            to the other kind of run.
        FingerprintMismatch: a cache or a backbone is not what the run was trained on.
        ExportParityError: an artefact disagrees with the cache; nothing is left behind.
        ExtraMissing: ONNX was asked for without its packages.
    """
    check_target(config.out, force=config.force)
    if config.onnx:
        artefacts.require_onnx()
    run = Run.open(config.run)
    job = _retrieval_job(run, config) if run.kind == "retrieval" else _classifier_job(run, config)
    return export_model(job, config.out, forms=config.forms, force=config.force)


def recorded_backbone(
    cache: Cache, config: ExportConfig, given: str | None, option: str = "backbone"
) -> Backbone:
    """Load the backbone of `cache` with the taps and the preprocessing recorded there.

    Args:
        cache: the cache.
        config: the export.
        given: the backbone's folder or hub id, if the user named it.
        option: what that is called, for the message.

    Raises:
        ExportError: nobody says which backbone it is.
    """
    name = given or cache.provenance.get("backbone")
    if not name:
        raise ExportError(
            f"{cache.path} does not say where its backbone came from: give its folder or hub id as "
            f"`{option}`"
        )
    recorded = cache.fingerprint.mapping
    return load_backbone(
        name,
        device="cpu",
        dtype="float32" if config.dtype == "auto" else config.dtype,
        taps=[tap.name for tap in cache.taps],
        architecture=_architecture(name, recorded),
        revision=config.revision or cache.provenance.get("revision"),
        pool=recorded_pool(recorded.get("taps", {})),
        **_preprocessing(recorded.get("preprocessing", {})),
    )


def _preprocessing(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load_backbone` that make inputs as a fingerprint records them."""
    if "image" not in recorded:
        return {"tower": "text", "max_length": recorded.get("max_length")}
    found = {name: recorded[name] for name in ("fps", "max_frames") if name in recorded}
    size = tuple(recorded["image"]["size"])
    return {"tower": recorded["modality"], "image_size": size, **found}


def _architecture(name: str, recorded: Mapping[str, Any]) -> str | None:
    model_type = recorded.get("weights", {}).get("model_type")
    if model_type in ARCHITECTURES:
        return str(model_type)
    return "openai_clip" if name.endswith(SUFFIXES) else None


def _classifier_job(run: Run, config: ExportConfig) -> Job:
    _refuse(config, "text_backbone", "media_backbone", "text_cache", "media_cache", kind=run.kind)
    cache = open_cache(run, run.info["cache"], config.cache)
    backbone = recorded_backbone(cache, config, config.backbone)
    if not isinstance(backbone, TextBackbone):
        raise ExportError(f"{backbone.name} reads no texts; a {run.kind} run needs a text model")
    return ClassifierJob(exportable(run, cache.path), backbone, cache, samples=config.samples)


def _retrieval_job(run: Run, config: ExportConfig) -> Job:
    _refuse(config, "backbone", "cache", kind=run.kind)
    caches, _ = run_caches(run, text=config.text_cache, media=config.media_cache)
    names = {"text": config.text_backbone, "media": config.media_backbone}
    backbones = {
        tower: recorded_backbone(cache, config, names[tower], f"{tower}_backbone")
        for tower, cache in caches.items()
    }
    text, media = backbones["text"], backbones["media"]
    if not isinstance(text, TextBackbone) or not isinstance(media, ImageBackbone):
        raise ExportError(
            f"{text.name} and {media.name} are no text model and image model, as the towers need"
        )
    return RetrievalJob(
        trained_towers(run, media.modality, {name: cache.path for name, cache in caches.items()}),
        text,
        media,
        text_cache=caches["text"],
        media_cache=caches["media"],
        samples=config.samples,
    )


def _refuse(config: ExportConfig, *names: str, kind: str) -> None:
    """Refuse options that a run of this kind would ignore."""
    given = [name for name in names if getattr(config, name) is not None]
    if given:
        known = (
            "text_backbone, media_backbone, text_cache, media_cache"
            if kind == "retrieval"
            else "backbone, cache"
        )
        raise ExportError(
            f"{', '.join(given)}: not options of a run of kind {kind}; its own are {known}"
        )


def exportable(run: Run, cache_path: Location) -> TrainedClassifier:
    """Collect what an exported folder needs from a run: weights, examples, metrics, settings."""
    dataset = load_dataset(run.data)
    splits = sorted(dataset.splits, key=lambda name: (name == "train", name == "dev"))
    return TrainedClassifier(
        classifier=run.classifier(),
        taps=run.taps,
        labels=run.labels,
        segments=run.info["model"]["segments"],
        unscale=run_task(run, dataset).unscale,
        rows=[example.inputs for name in splits for example in dataset.splits[name]],
        facts=_facts(run, lambda split: evaluate(_evaluation(run, split, cache=cache_path))),
    )


def trained_towers(run: Run, modality: Modality, caches: Mapping[str, Location]) -> TrainedTowers:
    """Collect what an exported folder needs from a retrieval run of pictures or clips."""
    dataset = load_retrieval(run_data(run))
    return TrainedTowers(
        towers=run.towers(),
        text_taps=run.tower_taps("text"),
        media_taps=run.tower_taps("media"),
        texts=[x for _, x in dataset.inputs("text") if isinstance(x, TextInput)],
        media=[x for _, x in dataset.inputs(modality) if not isinstance(x, TextInput)],
        facts=_facts(
            run,
            lambda split: evaluate_retrieval(
                _evaluation(run, split, text_cache=caches["text"], media_cache=caches["media"])
            ),
        ),
    )


def _evaluation(run: Run, split: str, **caches: Location) -> EvaluateConfig:
    return EvaluateConfig.build({"run": run.path, "split": split, **caches})


def _facts(run: Run, evaluate_split: Callable[[str], object]) -> Facts:
    """Return what the card says; metrics have intervals, a split is evaluated if it was not."""
    metrics = {}
    for split in run.info["metrics"]:
        path = run.path / f"evaluation_{split}.json"
        if not path.is_file():
            evaluate_split(split)
        metrics[split] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    settings = dict(run.info["config"])
    data = _without_folders(settings.pop("data")) | {"examples": run.info.get("examples")}
    places = ("cache", "text_cache", "media_cache", "out")
    training = {name: value for name, value in settings.items() if name not in places}
    return Facts(metrics=metrics, data=data, training=training)


def _without_folders(data: dict[str, Any]) -> dict[str, Any]:
    """Return a data configuration with the names of its files instead of their paths."""
    places = ("train", "dev", "test", "media")
    files = {name: Path(data[name]).name for name in places if data.get(name)}
    return {name: value for name, value in data.items() if value is not None} | files
