"""The end of a training: best weights, records of dev and test, and run.json, in this order.

Cost: one pass of the side model over dev and test.
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
from pipeline.run import FORMAT, INFO, WEIGHTS, Run, RunError
from pipeline.systems import Setup
from pipeline.systems.config import TrainConfig
from pipeline.training.checkpoint import Progress
from pipeline.training.ema import copy_weights
from pipeline.training.files import write_json, write_with
from pipeline.training.judge import judge_split, write_records
from unipt import SideModel

__all__ = ["RunResult", "finish", "reuse"]


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
    model: SideModel,
    now: Progress,
    *,
    identity: str,
    tier: str,
) -> RunResult:
    """Write the best weights, the records of dev and test, and run.json last.

    Args:
        config: of the training.
        setup: its data and caches.
        model: takes the best weights.
        now: the finished training's progress, with a best epoch.
        identity: what must be equal for the run to be the same.
        tier: where the batches came from, and why.
    """
    model.load_state_dict(now.best_weights)
    whole, said = setup.system.finish(model.to(setup.device), config, setup)
    weights = {name: value.contiguous() for name, value in copy_weights(whole.cpu()).items()}
    write_with(config.out / WEIGHTS, lambda file: save_file(weights, file))
    whole = whole.to(setup.device)
    metrics = {}
    for split in (name for name in setup.splits if name != "train"):
        judged = judge_split(setup, whole, split, batch_size=config.batch_size)
        write_records(config.out, split, judged)
        if found := judged.metrics():
            metrics[split] = found
    result = RunResult(
        path=config.out,
        metrics=metrics,
        best_epoch=1 + (now.best_epoch or 0),
        epochs=now.epoch,
        parameters=trained_parameters(whole),
        seconds=sum(record["seconds"] for record in now.history),
        tier=tier,
    )
    fields = {key: value for key, value in result.to_dict().items() if key != "path"}
    general = {"format": FORMAT, "history": now.history, "versions": _versions()}
    own = _info(config, setup, whole) | said | {"identity": identity}
    write_json(config.out / INFO, general | own | fields)
    return result


def trained_parameters(model: nn.Module) -> int:
    """Return how many numbers of a model are trained."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


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


def _info(config: TrainConfig, setup: Setup, model: SideModel) -> dict[str, Any]:
    return {
        "task": config.data.task,
        "config": config.model_dump(mode="json"),
        "model": model.config,
        "task_metrics": list(setup.task.metrics),
        "facts": setup.task.facts,
        "towers": {
            name: {"taps": list(setup.taps[name].names), "cache": describe_cache(cache)}
            for name, cache in setup.caches.items()
        },
        "examples": {
            split: dict(located.examples.counts) for split, located in setup.splits.items()
        },
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
