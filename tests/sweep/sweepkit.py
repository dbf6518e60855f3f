"""Small sweeps: nine trials on a made-up cache, and what of them must not change."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from stagekit import settings

from pipeline.sweep import SweepConfig
from pipeline.sweep.folder import read_results

ROOT = Path(__file__).parents[2]
SPACE = {"lr": "log:1e-3..1e-1", "side_width": "4,8", "dropout": "0..0.5"}
TIMED = {"seconds", "bytes_read"}


def sweep_config(tmp_path: Path, out: str = "sweep", **changes: Any) -> SweepConfig:
    values = settings(tmp_path, out, epochs=4) | {"space": SPACE, "trials": 9, "sampler": "random"}
    values |= {"together": 4}
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


def begin(config: SweepConfig) -> subprocess.Popen[bytes]:
    """Start the sweep of `config` in a process of its own."""
    file = config.out.with_suffix(".json")
    file.write_text(config.model_dump_json())
    script = (
        "import sys; from pathlib import Path; from pipeline.sweep import SweepConfig, sweep; "
        "sweep(SweepConfig.from_file(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, file]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)


def units(out: Path) -> int:
    return len(list((out / "units").glob("*.json")))


def kill_after(config: SweepConfig, records: int, pause: float) -> None:
    """Kill -9 the sweep a moment after so many of its units are recorded."""
    process = begin(config)
    try:
        while units(config.out) < records and process.poll() is None:
            time.sleep(0.005)
        time.sleep(pause)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
