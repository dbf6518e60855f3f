# mypy: allow-untyped-calls
"""Extraction by several processes or machines: one Dask task a shard, numbers only in the graph.

The coordinating process makes table, metadata and calibration, and is the only one that writes the
ledger; it computes nothing meanwhile. A worker writes whole shards and no record; what it leaves
half-written when it is killed, another one does again. Which worker computes a shard changes
nothing in it: its batches depend on the shard alone. Cost: some seconds for each worker to start
and load the backbone, and two shards of memory a worker.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from logging import CRITICAL
from multiprocessing import resource_tracker
from typing import Any
from uuid import uuid4

import torch
from distributed import (
    Client,
    KilledWorker,
    Nanny,
    Scheduler,
    SpecCluster,
    Worker,
    as_completed,
    get_worker,
)
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.utils import LoopRunner

from cache import CacheWriter
from cache.format.ledger import Entry
from pipeline.errors import PipelineError
from pipeline.extraction.job import RESUME, ShardJob, WorkerPool
from pipeline.processes import undisturbed_environment

_TASKS = 2
"""Tasks at once in a worker: one computes, one writes."""
_PATIENCE = 60.0
"""Seconds to wait for a scheduler, and for its first worker."""
_ANY_PORT = "127.0.0.1:0"
_LOCAL = {"host": "127.0.0.1", "protocol": "tcp://", "dashboard": False}


class WorkersFailed(PipelineError, RuntimeError):  # noqa: N818 - says it all
    """Workers cannot be reached, or died over and over; the message says how to go on."""


class JobPlugin(WorkerPlugin):
    """Brings a job to every worker of a cluster once, also to those that start later."""

    def __init__(self, name: str, job: ShardJob) -> None:
        self.name = name
        self.job = job

    def setup(self, worker: Worker) -> None:
        """Use the worker's threads where the job does not say how many."""
        self.job.threads = self.job.threads or worker.state.nthreads


def write_shard(shard: int, name: str) -> Entry:
    """Compute and write a shard of the job `name`: the task of a worker."""
    plugins, end = get_worker().plugins, time.monotonic() + _PATIENCE
    while name not in plugins:  # a worker that has just started takes tasks before its plugins
        if time.monotonic() > end:
            raise WorkersFailed(f"a worker did not receive the job; {RESUME}")
        time.sleep(0.05)
    job: ShardJob = vars(plugins[name])["job"]
    return job.write(shard)


def fill_by_workers(
    client: Client,
    job: ShardJob,
    writer: CacheWriter,
    pending: Sequence[int],
    finished: Callable[[int], object],
) -> None:
    """Let the workers of `client` fill the pending shards; each enters the ledger when done.

    Args:
        client: of the workers.
        job: what they need.
        writer: of the cache.
        pending: shards to fill.
        finished: called with each shard that is in the ledger.

    Raises:
        WorkersFailed: a shard killed its worker again and again, or the scheduler went away.
        PipelineError, CacheError: what went wrong in a worker.
    """
    name = f"extract-{uuid4().hex}"
    client.register_plugin(JobPlugin(name, job))
    futures = [
        client.submit(write_shard, shard, name, key=f"{name}-{shard}", pure=False)
        for shard in pending
    ]
    try:
        for future in as_completed(futures, loop=client.loop):
            entry = future.result()
            writer.accept(entry)
            finished(entry.shard)
    except KilledWorker as error:
        raise WorkersFailed(
            f"a shard killed its worker several times ({error}): out of memory? {RESUME}, with "
            "fewer workers or a smaller batch"
        ) from error
    except CancelledError as error:
        raise WorkersFailed(f"the scheduler went away; {RESUME}") from error
    finally:
        client.cancel(futures, force=True)
        if client.status == "running":
            client.unregister_worker_plugin(name)


@contextmanager
def workers_of(pool: WorkerPool) -> Iterator[Client]:
    """Yield a client of the pool's workers; those that are started here end with it.

    Raises:
        WorkersFailed: nothing answers at the scheduler's address, or it has no workers.
    """
    if pool.scheduler is not None:
        with _reached(pool.scheduler) as client:
            yield client
        return
    environments = worker_environments(
        pool.workers,
        threads=pool.threads_each or 1,
        gpus=torch.cuda.device_count(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )
    with (
        undisturbed_environment(),
        _undisturbed_loop() as loop,
        SpecCluster(
            workers={number: _local(env) for number, env in enumerate(environments)},
            scheduler={"cls": Scheduler, "options": _LOCAL | {"dashboard_address": _ANY_PORT}},
            silence_logs=CRITICAL,
            loop=loop,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(1, timeout=_PATIENCE)
        yield client


def worker_environments(
    workers: int, *, threads: int, gpus: int, visible: str | None
) -> list[dict[str, str]]:
    """Return the environment of each local worker: its threads, and its GPU if there are several.

    Args:
        workers: how many.
        threads: of each.
        gpus: that torch sees.
        visible: `CUDA_VISIBLE_DEVICES` of this process.
    """
    names = visible.split(",")[:gpus] if visible else [str(number) for number in range(gpus)]
    environments = []
    for number in range(workers):
        known = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        if gpus > 1:
            known["CUDA_VISIBLE_DEVICES"] = names[number % gpus]
        environments.append(known)
    return environments


@contextmanager
def _undisturbed_loop() -> Iterator[Any]:
    """Yield the event loop of a thread whose child processes do not hear Ctrl-C.

    The terminal sends it to every process; the coordinating one alone must decide what it means.
    """
    resource_tracker.ensure_running()  # a thread that starts it hears Ctrl-C again
    runner = LoopRunner()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by the thread
    try:
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield runner.loop
    finally:
        runner.stop()


def _local(environment: dict[str, str]) -> dict[str, Any]:
    own = {"nthreads": _TASKS, "memory_limit": 0, "env": environment, "silence_logs": CRITICAL}
    return {"cls": Nanny, "options": _LOCAL | own}


@contextmanager
def _reached(address: str) -> Iterator[Client]:
    try:
        client = Client(address, set_as_default=False, timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise WorkersFailed(
            f"no Dask scheduler answers at {address} ({error}); start one with `dask scheduler`, "
            "or give --workers N to start processes here"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            raise WorkersFailed(
                f"the scheduler at {address} has no workers; start some with `dask worker "
                f"{address}`, where this package is installed and the same files are seen"
            ) from error
        yield client
