"""The folder of a sweep: what it is, so that it can be continued and reported.

sweep.json      the configuration, and what must be equal to continue
study.db        Optuna's storage, unless a URL was given
sizes.json      trainings of a unit, by what they read, with the reason
units/*.json    what each work unit did
trials/*/       states of the trials that go on, or are kept, and runs made of these
best/           the run of the last fit
results.json    the table, written last
report.html     what `report` draws
"""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.space import Space
from pipeline.training.files import write_json

INFO = "sweep.json"
SIZES = "sizes.json"
RESULTS = "results.json"
BEST = "best"
REPORT = "report.html"
FORMAT = 1
PLACES = {"workers", "scheduler"}
"""Fields that say where work is done: they may change when a sweep is continued."""


class SweepError(PipelineError, RuntimeError):
    """A sweep's folder is missing, or holds another sweep, or lacks what is asked for."""


def begin(config: SweepConfig, space: Space, identity: str) -> None:
    """Write `sweep.json`, or check that the folder holds this very sweep.

    Raises:
        SweepError: it holds another one, or something else.
    """
    out = config.out
    values = config.model_dump(mode="json", exclude=PLACES | {"space"})
    values["space"] = space.to_json()
    told = {"config": values, "identity": identity}
    if (out / INFO).is_file():
        lines = _differences(_read(out), json.loads(json.dumps(told)))
        if lines:
            raise SweepError(
                f"{out} holds another sweep; choose another out folder, or remove it. It differs "
                "in:\n  " + "\n  ".join(lines)
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise SweepError(f"{out} is in use and holds no sweep; choose a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / INFO, {"format": FORMAT} | told)


def is_sweep(path: Path) -> bool:
    """Whether `path` is the folder of a sweep."""
    return (path / INFO).is_file()


def read_config(out: Path, **places: Any) -> SweepConfig:
    """Return the configuration of the sweep at `out`; `places` are where work is done now.

    Raises:
        SweepError: there is none.
    """
    values: dict[str, Any] = _read(out)["config"]
    values["run"]["out"] = str(out)  # which may have moved
    return SweepConfig.build(values | places)


def read_results(out: Path) -> dict[str, Any]:
    """Return results.json.

    Raises:
        SweepError: the sweep is not finished, or there is none.
    """
    _read(out)
    if not (out / RESULTS).is_file():
        raise SweepError(f"{out} is not finished: `unipt sweep --resume --out {out}` goes on")
    found: dict[str, Any] = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    return found


def _read(out: Path) -> dict[str, Any]:
    if not (out / INFO).is_file():
        raise SweepError(f"{out} holds no sweep; `unipt sweep --out {out}` makes one")
    values = json.loads((out / INFO).read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise SweepError(f"{out / INFO} is not of format {FORMAT}; sweep into a new folder")
    return values


def _differences(known: dict[str, Any], told: dict[str, Any]) -> list[str]:
    """Return one line for each setting that differs; one for the data, if only these do."""
    lines = []
    for name in told["config"].keys() | known["config"].keys():
        old, new = known["config"].get(name), told["config"].get(name)
        if name == "run" and old and new:
            lines += [
                f"{key}: {old.get(key)!r} before, {new.get(key)!r} now"
                for key in new
                if key != "out" and old.get(key) != new.get(key)
            ]
        elif old != new:
            lines.append(f"{name}: {old!r} before, {new!r} now")
    if not lines and known["identity"] != told["identity"]:
        lines.append("the examples or the caches")
    return sorted(lines)
