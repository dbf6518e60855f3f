"""A run folder: one trained side model with its config, metrics, curves and predictions.

    run.json             task, config, model config, towers (taps, caches), metrics, history
    model.safetensors    weights of the best epoch
    metrics.jsonl        one record an epoch
    checkpoint.pt        what an interrupted training resumes from
    predictions_*.jsonl  one record an example, of each split
    items_*.jsonl        one record an image or video, where a task has items

run.json is written last: a folder without it holds an unfinished training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from safetensors.torch import load_file

from cache import Cache, FingerprintMismatch
from cache.storage.location import Location, parse_location
from pipeline.config import ConfigError
from pipeline.errors import PipelineError
from pipeline.systems import System, system_of, train_config
from pipeline.systems.config import TrainConfig
from unipt import SideModel

INFO = "run.json"
WEIGHTS = "model.safetensors"
CURVES = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
FORMAT = 2


class RunError(PipelineError, RuntimeError):
    """A run folder is missing, unfinished, or holds another training."""


class RunTower(NamedTuple):
    """What run.json says of one tower."""

    taps: tuple[str, ...]
    """Names in order, the anchor last; a single one is anchor and target both."""
    cache: Mapping[str, Any]
    """Path, digest and fingerprint of the cache."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the folder.
        info: the contents of run.json.
    """

    path: Path
    info: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the finished run at `path`.

        Raises:
            RunError: there is none, it is unfinished, or its format is unknown.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunError(f"there is no run folder {path}; `train` writes one")
        if not (path / INFO).is_file():
            started = (path / CHECKPOINT).is_file()
            way = "train again into it to finish" if started else "it holds no training"
            raise RunError(f"{path} has no {INFO}: {way}")
        info = json.loads((path / INFO).read_text(encoding="utf-8"))
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            raise RunError(f"{path / INFO} is not of format {FORMAT}; train the run again")
        return cls(path, info)

    @property
    def task(self) -> str:
        """Name of its task."""
        return str(self.info["task"])

    @property
    def system(self) -> System:
        """The system that carries its task."""
        return system_of(self.task)

    @property
    def config(self) -> TrainConfig:
        """The training that made it."""
        return train_config(self.info["config"])

    @property
    def towers(self) -> dict[str, RunTower]:
        """Taps and cache of each tower."""
        return {
            name: RunTower(tuple(each["taps"]), each["cache"])
            for name, each in self.info["towers"].items()
        }

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the task's metrics; the first one chose the epoch."""
        return tuple(self.info["task_metrics"])

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names, None where there are no classes."""
        labels = self.info["facts"].get("labels")
        return None if labels is None else tuple(labels)

    def model(self) -> SideModel:
        """Return the trained side model, on the CPU, in evaluation mode."""
        model = self.system.Model.from_config(self.info["model"])
        model.load_state_dict(load_file(self.path / WEIGHTS))
        return model.eval()

    def caches(self, moved: Sequence[str] = ()) -> dict[str, Cache]:
        """Open the cache of each tower.

        Args:
            moved: where caches are now that have moved since: PLACE for a run of one cache, else
                TOWER=PLACE.

        Raises:
            ConfigError: `moved` names no tower of the run.
            FingerprintMismatch: a cache is not the one the run was trained on.
        """
        places = by_tower(moved, self.towers, "cache")
        opened: dict[str, Cache] = {}
        for name, tower in self.towers.items():
            place = parse_location(places.get(name, tower.cache["path"]))
            same = next((each for each in opened.values() if str(each.path) == str(place)), None)
            opened[name] = same or self._open(place, tower.cache)
        return opened

    def _open(self, path: Location, recorded: Mapping[str, Any]) -> Cache:
        cache = Cache.open(path)
        if cache.fingerprint.digest != recorded["digest"]:
            before = type(cache.fingerprint)(recorded["fingerprint"])
            lines = "\n  ".join(before.diff(cache.fingerprint, ("trained on", "found")))
            raise FingerprintMismatch(
                f"{path} is not the cache the run {self.path} was trained on:\n  {lines}\nGive "
                "the right one, or train on this one"
            )
        return cache


def by_tower(given: Sequence[str], towers: Mapping[str, RunTower], option: str) -> dict[str, str]:
    """Return what an option gives for each tower, of VALUE (for all of one cache) or TOWER=VALUE.

    Raises:
        ConfigError: a tower is unknown, or VALUE is given for towers of several caches.
    """
    found: dict[str, str] = {}
    caches = {(each.cache["path"], each.cache["digest"]) for each in towers.values()}
    for each in given:
        name, equals, value = each.partition("=")
        if equals and name in towers:
            found[name] = value
        elif len(caches) == 1:
            found |= dict.fromkeys(towers, each)
        else:
            known = ", ".join(f"{tower}=..." for tower in towers)
            raise ConfigError(f"--{option} {each}: this run has several towers; give {known}")
    return found
