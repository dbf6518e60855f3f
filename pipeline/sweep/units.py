"""Work units: some trainings of one shape, from one epoch to another, and what came of them.

A unit is a function of its trainings and their saved states, so any process may do it, twice if
need be. What it did is recorded in one file that appears whole; a unit with a record is never done
again. States are written before the record.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from pipeline.sweep.config import SearchConfig
from pipeline.sweep.space import Params, apply
from pipeline.tasks.metrics import better
from pipeline.training.config import LoopConfig, TrainConfig
from pipeline.training.files import write_json

C = TypeVar("C", bound=LoopConfig)
UNITS = "units"
TRIALS = "trials"


class Member(NamedTuple):
    """One training of a trial: with one seed, on one fold."""

    trial: int
    seed: int = 0
    fold: int = 0

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"seed{self.seed}-fold{self.fold}"


def members_of(trial: int, config: SearchConfig) -> list[Member]:
    """Return every training of a trial."""
    folds = range(max(1, config.folds))
    return [Member(trial, seed, fold) for seed in range(config.seeds) for fold in folds]


def member_config(run: C, params: Params, member: Member) -> C:
    """Return the training of a member; its folder takes an ordinary run, if it becomes one.

    Args:
        run: the run that is varied, in the folder of the sweep.
        params: the point of the member's trial.
        member: the training.

    Raises:
        ConfigError: the values of the point do not go together.
    """
    out = trial_folder(run.out, member.trial) / f"run-seed{member.seed}"
    return apply(run, params, out=out, **seeds(run, member.seed))


def seeds(run: LoopConfig, number: int = 0) -> dict[str, int]:
    """Return the seeds of a trial's training `number`; those that share batches have one order."""
    order = {"order_seed": run.batch_seed} if isinstance(run, TrainConfig) else {}
    return {"seed": run.seed + number} | order


def trial_folder(out: Path, trial: int) -> Path:
    """Return the folder of a trial's states and runs."""
    return out / TRIALS / f"{trial:05}"


def state_path(out: Path, member: Member, epoch: int) -> Path:
    """Return where a member's state after `epoch` epochs is kept."""
    return trial_folder(out, member.trial) / f"{member.name}-epoch{epoch}"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Trainings of one shape on one fold, from epoch `start` to epoch `stop`.

    Attributes:
        members: the trainings.
        points: the point of each member's trial, by number.
        start: epochs trained before.
        stop: epochs trained afterwards, by those that train so long.
    """

    members: tuple[Member, ...]
    points: dict[int, Params]
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the unit, the same for the same members and epochs."""
        text = json.dumps([self.members, self.start, self.stop])
        digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        return f"{self.members[0].trial:05}-epoch{self.stop}-{digest}"


@dataclass(frozen=True, kw_only=True)
class Course:
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
        courses: of its members.
        seconds: wall-clock time.
        bytes_read: bytes of activations that its loaders delivered.
    """

    name: str
    start: int
    stop: int
    courses: dict[Member, Course]
    seconds: float
    bytes_read: int

    def save(self, out: Path) -> None:
        """Write the record; from then on the unit counts as done."""
        folder = out / UNITS
        folder.mkdir(parents=True, exist_ok=True)
        values = dataclasses.asdict(self)
        values["courses"] = [
            {"member": list(member), **dataclasses.asdict(course)}
            for member, course in self.courses.items()
        ]
        write_json(folder / f"{self.name}.json", values)

    @classmethod
    def find(cls, out: Path, name: str) -> Self | None:
        """Return the record of the unit `name`; None if it is not done."""
        path = out / UNITS / f"{name}.json"
        if not path.is_file():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        values["courses"] = {
            Member(*one["member"]): Course(history=tuple(one["history"]), failed=one["failed"])
            for one in values["courses"]
        }
        return cls(**values)


def last_state(out: Path, member: Member) -> Path | None:
    """Return the state of a member after its last epoch; None if none is kept."""
    found = trial_folder(out, member.trial).glob(f"{member.name}-epoch*")
    return max(found, key=lambda path: int(path.name.rpartition("epoch")[2]), default=None)


def drop_states(out: Path, trial: int) -> None:
    """Delete all states of a trial."""
    folder = trial_folder(out, trial)
    for path in folder.glob("seed*-fold*-epoch*"):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
