"""What a sweep found: the table of its trials, what they cost, and the best one."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.console import duration
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.folder import BEST, RESULTS
from pipeline.sweep.importance import importances
from pipeline.sweep.space import Space
from pipeline.sweep.trainer import Tested
from pipeline.sweep.trial import Trial, summary
from pipeline.sweep.units import UNITS, UnitRecord
from pipeline.tasks.metrics import LOWER_IS_BETTER
from pipeline.training.files import write_json
from pipeline.training.results import RunResult

STATES = ("complete", "pruned", "failed")


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        path: its folder.
        metric: of dev (or of the folds), which chose.
        trials: every trial by number: params, state, score, epochs, rung, seconds, bytes_read,
            curve (best mean score up to each epoch), losses, reason.
        best: number of the best complete trial; None if none is.
        ranked: the best complete trials, at most `keep`, the best one first.
        tested: their test metrics with intervals, where they were tested.
        refit: the run of the last fit, in the folder `best`.
        importances: share of the score's variance that each field explains.
        sizes: most trainings of a unit, by what they share, with the reason.
        rungs: what the epochs up to each rung cost: start, stop, trials, trainings, units, epochs,
            seconds, bytes_read.
    """

    path: Path
    metric: str
    trials: tuple[dict[str, Any], ...]
    best: int | None
    ranked: tuple[int, ...]
    tested: Mapping[int, Tested]
    refit: RunResult | None
    importances: Mapping[str, float]
    sizes: Mapping[str, Mapping[str, Any]]
    rungs: tuple[dict[str, Any], ...]

    @property
    def params(self) -> dict[str, Any]:
        """The best point; empty if no trial is complete."""
        return {} if self.best is None else dict(self.trials[self.best]["params"])

    @property
    def seconds(self) -> float:
        """Wall-clock time of all work units together."""
        return float(sum(trial["seconds"] for trial in self.trials))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        tested = {
            str(number): {name: interval.to_dict() for name, interval in metrics.items()}
            for number, metrics in self.tested.items()
        }
        return values | {
            "path": str(self.path),
            "trials": list(self.trials),
            "ranked": list(self.ranked),
            "rungs": list(self.rungs),
            "tested": tested,
            "refit": None if self.refit is None else self.refit.to_dict(),
            "importances": dict(self.importances),
            "sizes": {name: dict(size) for name, size in self.sizes.items()},
        }

    def render(self) -> str:
        """Return the table of the best trials, and what it all cost."""
        counts = {state: sum(t["state"] == state for t in self.trials) for state in STATES}
        epochs = sum(trial["epochs"] for trial in self.trials)
        read = sum(trial["bytes_read"] for trial in self.trials)
        lines = [
            f"{self.path}: {len(self.trials)} trials ("
            + ", ".join(f"{count} {state}" for state, count in counts.items() if count)
            + f"), {epochs:,} epochs in {duration(self.seconds)}, "
            f"{read / max(1, len(self.trials)) / 1e6:,.1f} MB read a trial",
        ]
        lines += list(dict.fromkeys(str(size["reason"]) for size in self.sizes.values()))
        if self.best is None:
            return "\n".join([*lines, "no trial is complete; see the reasons in results.json"])
        lines += ["", *_table(self._rows())]
        if self.refit is not None:
            lines += ["", self.refit.render()]
        return "\n".join(lines)

    def _rows(self) -> list[list[str]]:
        names = list(dict.fromkeys(name for t in self.trials for name in t["params"]))
        main = next(iter(self.tested.values()), {})
        head = [
            "trial",
            f"dev {self.metric}",
            *(f"test {name}" for name in main),
            "trained",
            *names,
        ]
        rows = [head]
        for number in self.ranked:
            trial = self.trials[number]
            tested = self.tested.get(number, {})
            cells = [
                f"{points(v.value, 3)} [{points(v.low, 3)}, {points(v.high, 3)}]"
                for v in tested.values()
            ]
            values = [shown(trial["params"].get(name, "")) for name in names]
            score = points(trial["score"])
            rows.append([str(number), score, *cells, str(trial["epochs"]), *values])
        return rows


def collect(
    config: SweepConfig,
    space: Space,
    trials: Mapping[int, Trial],
    *,
    metric: str,
    ranked: Sequence[int],
    tested: Mapping[int, Tested],
    refit: RunResult | None,
    sizes: Mapping[str, Mapping[str, Any]],
) -> SweepResult:
    """Write `results.json` and return what it says."""
    rows = []
    for number in sorted(trials):
        trial = trials[number]
        rows.append(
            summary(trial, metric)
            | {"curve": _finite(trial.curve(metric)), "losses": _losses(trial)}
        )
    result = SweepResult(
        path=config.out,
        metric=metric,
        trials=tuple(rows),
        best=ranked[0] if ranked else None,
        ranked=tuple(ranked),
        tested=dict(tested),
        refit=refit,
        importances=importances(space, rows, lower_is_better=metric in LOWER_IS_BETTER),
        sizes=dict(sizes),
        rungs=tuple(rung_costs(config.out)),
    )
    write_json(config.out / RESULTS, {"best_run": BEST} | result.to_dict())
    return result


def rung_costs(out: Path) -> list[dict[str, Any]]:
    """Return what the epochs up to each rung cost, from the records of the units."""
    parts: dict[tuple[int, int], list[UnitRecord]] = {}
    for file in sorted((out / UNITS).glob("*.json")):
        record = UnitRecord.find(out, file.stem)
        if record is not None:
            parts.setdefault((record.start, record.stop), []).append(record)
    rungs = []
    for (start, stop), records in sorted(parts.items(), key=lambda part: part[0][::-1]):
        histories = [pair for record in records for pair in record.histories.items()]
        rungs.append(
            {
                "start": start,
                "stop": stop,
                "trials": len({replicate.trial for replicate, _ in histories}),
                "trainings": len(histories),
                "units": len(records),
                "epochs": sum(max(0, len(each.history) - start) for _, each in histories),
                "seconds": sum(record.seconds for record in records),
                "bytes_read": sum(record.bytes_read for record in records),
            }
        )
    return rungs


def shown(value: Any) -> str:
    """Return a value for a table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def points(value: float, digits: int = 4) -> str:
    """Return a score with so many digits after the point; one above 10 (in percent) with one."""
    return f"{value:.{digits if abs(value) < 10 else 1}f}"


def _losses(trial: Trial) -> list[float | None]:
    """Return the training loss of each epoch of the trial's first training."""
    history = next(iter(trial.histories.values())).history if trial.histories else ()
    return _finite([record["loss"] for record in history])


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if abs(value) < float("inf") else None for value in values]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
