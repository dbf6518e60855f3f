"""Sweeps on a Dask cluster that is at an address: the same study, though a worker dies."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from distributed import Client, LocalCluster
from pairkit import settings
from sweepkit import outcome, sweep_config

from pipeline.config import ConfigError
from pipeline.processes import undisturbed_environment
from pipeline.sweep import SweepConfig, sweep
from pipeline.sweep import work as work_module

CHANGES: dict[str, Any] = {"trials": 6, "together": 2, "refit": "none", "keep": 2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Let this process sum in the order of the workers, which have one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a scheduler with two workers, each a process that is started again if it dies."""
    with (
        undisturbed_environment(),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
    ):
        yield cluster.scheduler_address


def test_a_cluster_that_loses_a_worker_makes_the_same_study(tmp_path, scheduler, monkeypatch):
    alone = sweep(sweep_config(tmp_path, "alone", **CHANGES))
    before: list[set[int]] = []
    wait = work_module.DaskRunner.wait

    def wait_and_kill(runner):
        record = wait(runner)
        if not before:
            before.append(set(runner.client.run(os.getpid).values()))
            os.kill(min(before[0]), signal.SIGKILL)
        return record

    monkeypatch.setattr(work_module.DaskRunner, "wait", wait_and_kill)
    far = sweep(sweep_config(tmp_path, "far", scheduler=scheduler, **CHANGES))
    assert os.getpid() not in before[0]
    assert outcome(far.path) == outcome(alone.path)
    assert far.tested == alone.tested
    units = [{file.name for file in (one.path / "units").iterdir()} for one in (far, alone)]
    assert units[0] == units[1]
    with Client(scheduler) as client:
        client.wait_for_workers(2, timeout=60)
        assert set(client.run(os.getpid).values()) != before[0]


def test_trainings_of_two_towers_are_spread_over_a_cluster(tmp_path, scheduler):
    def run(out: str, **changes: Any) -> SweepConfig:
        values = settings(tmp_path, out=out, epochs=2, ema=0.5) | {"space": {"lr": [1e-3, 1e-2]}}
        values |= {"sampler": "grid", "refit": "none", "eta": 2}
        return SweepConfig.build(values | changes)

    alone = sweep(run("alone"))
    far = sweep(run("far", scheduler=scheduler))
    assert outcome(far.path) == outcome(alone.path)
    assert far.tested == alone.tested


def test_workers_and_a_scheduler_are_one_too_many(tmp_path):
    with pytest.raises(ConfigError, match="not both"):
        sweep_config(tmp_path, workers=2, scheduler="tcp://127.0.0.1:8786")
