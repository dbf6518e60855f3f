"""Work units: trainings that share their batches, from one epoch to another, and what they did.

A unit is a function of its trainings and their saved states, so any process may do it, twice if
need be. What it did is recorded in one file that appears whole; a unit with a record is never done
again. States are written before the record.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from pipeline.sweep.config import SweepConfig
from pipeline.sweep.space import Params, apply
from pipeline.systems.config import TrainConfig
from pipeline.tasks.metrics import better
from pipeline.training.files import write_json

UNITS = "units"
TRIALS = "trials"


class Replicate(NamedTuple):
    """One training of a trial: with one seed, on one fold."""

    trial: int
    seed: int = 0
    fold: int = 0

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"seed{self.seed}-fold{self.fold}"


def replicates_of(trial: int, config: SweepConfig) -> list[Replicate]:
    """Return every training of a trial."""
    folds = range(max(1, config.folds))
    return [Replicate(trial, seed, fold) for seed in range(config.seeds) for fold in folds]


def replicate_config(run: TrainConfig, params: Params, replicate: Replicate) -> TrainConfig:
    """Return the training of a replicate; its folder takes an ordinary run, if it becomes one.

    Args:
        run: the run that is varied, in the folder of the sweep.
        params: the point of the replicate's trial.
        replicate: the training.

    Raises:
        ConfigError: the values of the point do not go together.
    """
    out = trial_folder(run.out, replicate.trial) / f"run-seed{replicate.seed}"
    return apply(run, params, out=out, **seeds(run, replicate.seed))


def seeds(run: TrainConfig, number: int = 0) -> dict[str, int]:
    """Return the seeds of a trial's training `number`; all of a sweep have one order."""
    return {"seed": run.seed + number, "order_seed": run.batch_seed}


def trial_folder(out: Path, trial: int) -> Path:
    """Return the folder of a trial's states and runs."""
    return out / TRIALS / f"{trial:05}"


def state_path(out: Path, replicate: Replicate, epoch: int) -> Path:
    """Return where the checkpoint of a replicate after `epoch` epochs is kept."""
    return trial_folder(out, replicate.trial) / f"{replicate.name}-epoch{epoch}"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Trainings that want the same batches, from epoch `start` to epoch `stop`.

    Attributes:
        replicates: the trainings.
        points: the point of each one's trial, by number.
        start: epochs trained before.
        stop: epochs trained afterwards, by those that train so long.
    """

    replicates: tuple[Replicate, ...]
    points: dict[int, Params]
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the unit, the same for the same replicates and epochs."""
        text = json.dumps([self.replicates, self.start, self.stop])
        digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        return f"{self.replicates[0].trial:05}-epoch{self.stop}-{digest}"


@dataclass(frozen=True, kw_only=True)
class TrainingHistory:
    """How one training has gone so far.

    Attributes:
        history: one record an epoch: epoch, loss, dev metrics, lr, seconds.
        failed: why it cannot go on; None if it can.
    """

    history: tuple[dict[str, Any], ...]
    failed: str | None = None

    def scores(self, metric: str) -> list[float]:
        """Return the best score up to each epoch; an epoch before any finite one has NaN."""
        found: list[float] = []
        best: float | None = None
        for record in self.history:
            value = record["dev"].get(metric)
            if value is not None and better(metric, value, best):
                best = value
            found.append(float("nan") if best is None else best)
        return found


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """What a unit did.

    Attributes:
        name: of the unit.
        start: epochs trained before.
        stop: epochs trained afterwards, at most.
        histories: of its replicates.
        seconds: wall-clock time.
        bytes_read: bytes of activations that its loaders delivered.
    """

    name: str
    start: int
    stop: int
    histories: dict[Replicate, TrainingHistory]
    seconds: float
    bytes_read: int

    def save(self, out: Path) -> None:
        """Write the record; from then on the unit counts as done."""
        folder = out / UNITS
        folder.mkdir(parents=True, exist_ok=True)
        values = dataclasses.asdict(self)
        values["histories"] = [
            {"replicate": list(replicate), **dataclasses.asdict(history)}
            for replicate, history in self.histories.items()
        ]
        write_json(folder / f"{self.name}.json", values)

    @classmethod
    def find(cls, out: Path, name: str) -> Self | None:
        """Return the record of the unit `name`; None if it is not done."""
        path = out / UNITS / f"{name}.json"
        if not path.is_file():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        values["histories"] = {
            Replicate(*one["replicate"]): TrainingHistory(
                history=tuple(one["history"]), failed=one["failed"]
            )
            for one in values["histories"]
        }
        return cls(**values)


def last_state(out: Path, replicate: Replicate) -> Path | None:
    """Return the checkpoint of a replicate after its last epoch; None if none is kept."""
    found = trial_folder(out, replicate.trial).glob(f"{replicate.name}-epoch*")
    return max(found, key=lambda path: int(path.name.rpartition("epoch")[2]), default=None)


def drop_states(out: Path, trial: int) -> None:
    """Delete all states of a trial."""
    folder = trial_folder(out, trial)
    for path in folder.glob("seed*-fold*-epoch*"):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
