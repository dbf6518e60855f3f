"""The end of a training: best weights, predictions and run.json, written in this order.

Cost: one pass of the side classifier over dev and test.
"""

import dataclasses
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from cache import Cache
from cache.storage.location import absolute
from pipeline.console import duration
from pipeline.evaluate import split_metrics, write_predictions
from pipeline.run import FORMAT, INFO, WEIGHTS, Run, RunError
from pipeline.training.build import Setup, rescale_outputs, split_outputs
from pipeline.training.checkpoint import Progress
from pipeline.training.config import TrainConfig
from pipeline.training.ema import copy_weights
from pipeline.training.files import write_json, write_with
from pipeline.training.memory import add_memory
from unipt import SideClassifier


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished training.

    Attributes:
        path: the run folder.
        metrics: metrics of dev and, where there is one with labels, test, at the best epoch.
        best_epoch: the epoch whose weights were kept, from 1.
        epochs: epochs trained.
        parameters: trained numbers.
        seconds: wall-clock time of the epochs.
        tier: where the batches came from, and why.
        reused: whether the folder held this very run already.
    """

    path: Path
    metrics: dict[str, dict[str, float]]
    best_epoch: int
    epochs: int
    parameters: int
    seconds: float
    tier: str
    reused: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return dataclasses.asdict(self) | {"path": str(self.path)}

    def render(self) -> str:
        """Return the result as lines of text."""
        did = "was trained already" if self.reused else f"trained in {duration(self.seconds)}"
        scores = [
            f"{split} {name} {value:.3f}"
            for split, metrics in self.metrics.items()
            for name, value in metrics.items()
            if not name.endswith("_rank")
        ]
        return "\n".join(
            (
                f"{self.path}: {self.parameters:,} parameters, {did}, epoch {self.best_epoch} of "
                f"{self.epochs} kept; batches from {self.tier}",
                ", ".join(scores),
            )
        )


def finish(
    config: TrainConfig,
    setup: Setup,
    model: SideClassifier,
    now: Progress,
    *,
    identity: str,
    tier: str,
) -> RunResult:
    """Write the best weights, the predictions of dev and test, and run.json last.

    Args:
        config: of the training.
        setup: its data and cache.
        model: takes the best weights; written with outputs in the target's units, and with a memory
            where the config asks for one.
        now: the finished training's progress, with a best epoch.
        identity: what must be equal for the run to be the same.
        tier: where the batches came from, and why.
    """
    model.load_state_dict(now.best_weights)
    memory_weight = None
    if config.memory_keys:
        model, memory_weight = add_memory(config, setup, model.to(setup.device))
    scale, shift = setup.task.unscale
    if (scale, shift) != (1.0, 0.0):
        rescale_outputs(model, scale, shift)
    save_weights(config.out, model)
    return write_run(
        config.out,
        model,
        now,
        metrics=_predict(config, setup, model.to(setup.device)),
        tier=tier,
        info=_info(config, setup, model) | {"identity": identity, "memory_weight": memory_weight},
    )


def save_weights(folder: Path, model: nn.Module) -> None:
    """Write a model's weights into a run folder; the model is on the CPU afterwards."""
    weights = {name: value.contiguous() for name, value in copy_weights(model.cpu()).items()}
    write_with(folder / WEIGHTS, lambda file: save_file(weights, file))


def write_run(
    folder: Path,
    model: nn.Module,
    now: Progress,
    *,
    metrics: dict[str, dict[str, float]],
    tier: str,
    info: dict[str, Any],
) -> RunResult:
    """Write run.json, the last file of a run, and return what it says.

    Args:
        folder: of the run.
        model: for the count of its trained numbers.
        now: the finished training's progress, with a best epoch.
        metrics: of each split, at the best epoch.
        tier: where the batches came from, and why.
        info: everything else that run.json holds.
    """
    result = RunResult(
        path=folder,
        metrics=metrics,
        best_epoch=1 + (now.best_epoch or 0),
        epochs=now.epoch,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        seconds=sum(record["seconds"] for record in now.history),
        tier=tier,
    )
    fields = {key: value for key, value in result.to_dict().items() if key != "path"}
    general = {"format": FORMAT, "history": now.history, "versions": _versions()}
    write_json(folder / INFO, general | info | fields)
    return result


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "zarr", "scikit-learn")
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def describe_cache(cache: Cache) -> dict[str, Any]:
    """Return what run.json says of a cache: where it is, and what it holds."""
    return {
        "path": absolute(cache.path),
        "digest": cache.fingerprint.digest,
        "fingerprint": cache.fingerprint.mapping,
    }


def _predict(
    config: TrainConfig, setup: Setup, model: SideClassifier
) -> dict[str, dict[str, float]]:
    metrics: dict[str, dict[str, float]] = {}
    for split in (name for name in setup.splits if name != "train"):
        located = setup.splits[split]
        outputs = split_outputs(model, setup, split, config.batch_size)
        write_predictions(config.out, split, setup.task, located, outputs)
        if located.targets is not None:
            metrics[split] = split_metrics(setup.task, outputs.logits, located.targets)
    return metrics


def _info(config: TrainConfig, setup: Setup, model: SideClassifier) -> dict[str, Any]:
    return {
        "kind": setup.task.kind,
        "config": config.model_dump(mode="json"),
        "model": model.config,
        "task": setup.task.kind,
        "task_metrics": list(setup.task.metrics),
        "labels": None if setup.task.labels is None else list(setup.task.labels),
        "taps": list(setup.tap_names),
        "cache": describe_cache(setup.cache),
        "examples": {split: len(rows) for split, rows in setup.dataset.splits.items()},
        "seed": config.seed,
        "device": str(setup.device),
    }


def reuse(run: Run, identity: str) -> RunResult:
    """Return the result of a finished run, if it is the one that is asked for.

    Raises:
        RunError: it is another one.
    """
    if run.info["identity"] != identity:
        raise RunError(
            f"{run.path} holds a finished run of another configuration, cache or data; choose "
            "another out folder, or remove this one"
        )
    fields = {f.name for f in dataclasses.fields(RunResult)} - {"path", "reused"}
    return RunResult(path=run.path, reused=True, **{name: run.info[name] for name in fields})
