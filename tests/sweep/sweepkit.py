"""Small sweeps: nine trials on a made-up cache, and what of them must not change."""

from pathlib import Path
from typing import Any

import optuna
from stagekit import settings

from pipeline.sweep import SweepConfig
from pipeline.sweep.folder import read_results

SPACE = {"lr": "log:1e-3..1e-1", "side_width": "4,8", "dropout": "0..0.5"}
TIMED = {"seconds", "bytes_read"}


def sweep_config(tmp_path: Path, out: str = "sweep", **changes: Any) -> SweepConfig:
    values = settings(tmp_path, out, epochs=4) | {"space": SPACE, "trials": 9, "sampler": "random"}
    values |= {"cohort": 4}
    values["data"] = values["data"] | {"metrics": ("accuracy",)}
    return SweepConfig.build(values | changes)


def outcome(out: Path) -> list[dict[str, Any]]:
    """Return what each trial came to, without times."""
    trials = read_results(out)["trials"]
    return [{k: v for k, v in trial.items() if k not in TIMED} for trial in trials]


def studied(out: Path) -> list[tuple[Any, ...]]:
    """Return the trials as Optuna's storage has them."""
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{out / 'study.db'}")
    return [(t.number, t.params, t.state, t.value, t.intermediate_values) for t in study.trials]
