"""A sweep that is killed goes on as if nothing had happened, and workers change no number."""

import os
import signal
import subprocess
import sys

import pytest
from sweepkit import ROOT, SPACE, kill_after, outcome, studied, sweep_config, units

from pipeline.sweep import sweep
from pipeline.sweep import work as work_module
from pipeline.sweep.space import Space
from pipeline.sweep.study import Study, StudyError

CHANGES = {
    "sampler": "tpe",
    "generation": 6,
    "trials": 18,
    "together": 2,
    "refit": "none",
    "keep": 2,
}


def test_killed_at_any_moment_it_is_the_same_study(tmp_path):
    whole = sweep(sweep_config(tmp_path, "whole", **CHANGES))
    config = sweep_config(tmp_path, "killed", **CHANGES)
    kill_after(config, 1, 0.0)
    assert 1 <= units(config.out) < units(whole.path)
    kill_after(config, units(config.out) + 4, 0.03)
    assert not (config.out / "results.json").exists()
    done = {file: file.stat().st_mtime_ns for file in (config.out / "units").glob("*.json")}
    sweep(config)
    assert {file: file.stat().st_mtime_ns for file in done} == done  # nothing was done again
    assert outcome(config.out) == outcome(whole.path)
    assert studied(config.out) == studied(whole.path)


def test_a_sweep_stopped_while_it_asks_proposes_the_same_points(tmp_path):
    def study(name: str) -> Study:
        (tmp_path / name).mkdir(exist_ok=True)
        space = Space.parse(SPACE)
        return Study(tmp_path / name, space=space, sampler="tpe", seed=3)

    def finish(one: Study, numbers: range) -> None:
        for number in numbers:
            one.report(number, {1: number / 20})
            one.tell(number, ("complete", "pruned", "failed")[number % 3], number / 10)

    whole, broken = study("whole"), study("broken")
    for one in (whole, broken):
        one.ask(range(12))
        finish(one, range(12))
    expected = whole.ask(range(12, 18))
    broken.ask(range(12, 15))
    broken.close()
    again = study("broken")
    assert again.ask(range(12, 18)) == expected
    finish(again, range(12))  # told twice changes nothing
    assert studied(tmp_path / "broken") == studied(tmp_path / "whole")
    with pytest.raises(StudyError, match="lacks those before number 30"):
        again.ask(range(30, 32))


def test_one_worker_and_two_of_which_one_is_killed_agree(tmp_path, monkeypatch):
    changes = CHANGES | {"sampler": "random", "trials": 6, "keep": 1}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    one = sweep(sweep_config(tmp_path, "one", workers=1, **changes))
    assert os.environ["OMP_NUM_THREADS"] == "7"
    killed: list[int] = []
    wait = work_module.DaskRunner.wait

    def wait_and_kill(runner):
        record = wait(runner)
        if not killed:
            killed.append(next(iter(runner.client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)
        return record

    monkeypatch.setattr(work_module.DaskRunner, "wait", wait_and_kill)
    two = sweep(sweep_config(tmp_path, "two", workers=2, **changes))
    assert killed
    assert outcome(two.path) == outcome(one.path)
    assert two.tested == one.tested


def test_resume_needs_nothing_but_the_folder(tmp_path):
    config = sweep_config(tmp_path, **(CHANGES | {"sampler": "random", "trials": 4}))
    kill_after(config, 1, 0.0)
    process = subprocess.run(
        [sys.executable, ROOT / "cli.py", "sweep", "--resume", "--out", config.out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "4 trials" in process.stdout
    assert len(outcome(config.out)) == 4
