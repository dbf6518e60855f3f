"""Several workers give the bytes of one process, whatever is killed meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tiny import SENTENCES, save_tiny

from cache import Cache, CacheDamaged, verify
from pipeline.backbones import load_backbone
from pipeline.config import ConfigError
from pipeline.errors import PipelineError
from pipeline.extract import ExtractConfig, extract_inputs
from pipeline.extraction import workers as module
from pipeline.extraction.fill import ExtractionInterrupted
from pipeline.extraction.job import OtherBackbone, WorkerPool
from pipeline.extraction.workers import WorkersFailed, worker_environments, workers_of
from pipeline.inputs import TextInput

ROWS = [(f"row/{i}", TextInput(f"{SENTENCES[i % 5]} {'abcdefghij'[i % 10]} {'klmn'[i // 10 % 4]} "
                               f"{'opqrst'[i // 40]}")) for i in range(240)]  # fmt: skip
SMALL = {"block_tokens": 24, "batch_bound": 64, "threads": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Two worker processes: the address of their scheduler, and their process ids."""
    with workers_of(WorkerPool(load=partial(load_backbone, str(folder)), workers=2)) as client:
        client.wait_for_workers(2, timeout=60)
        yield client.scheduler.address, client


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What one process writes, by storage type."""
    found = {}
    for dtype in ("float16", "int8"):
        path = tmp_path_factory.mktemp("alone") / dtype
        extract_inputs(load_backbone(str(folder)), ROWS, path, store_dtype=dtype, **SMALL)
        found[dtype] = contents(path)
    return found


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def by(cluster, folder: Path, path: Path, *, load=None, **changes):
    pool = WorkerPool(load=load or partial(load_backbone, str(folder)), scheduler=cluster[0])
    backbone = load_backbone(str(folder))
    return extract_inputs(backbone, ROWS, path, pool=pool, **(SMALL | changes))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_workers_give_the_bytes_of_one_process(cluster, folder, alone, tmp_path, dtype) -> None:
    seen = []
    report = by(cluster, folder, tmp_path / "c", store_dtype=dtype, progress=seen.append)
    assert contents(tmp_path / "c") == alone[dtype]
    assert report.shards_written == report.shards > 5
    assert seen[-1].tokens == seen[-1].total_tokens == report.tokens
    again = by(cluster, folder, tmp_path / "c", store_dtype=dtype)
    assert again.shards_written == 0


def test_a_killed_workers_shards_are_done_by_others(cluster, folder, alone, tmp_path) -> None:
    client, killed = cluster[1], []

    def kill(step) -> None:
        if not killed:
            killed.extend(client.run(os.getpid).values())
            os.kill(killed[0], signal.SIGKILL)

    by(cluster, folder, tmp_path / "c", progress=kill)
    assert contents(tmp_path / "c") == alone["float16"]
    assert verify(tmp_path / "c").ok
    assert killed[0] not in client.run(os.getpid).values()


def test_ctrl_c_keeps_what_is_done(cluster, folder, alone, tmp_path) -> None:
    def stop(step) -> None:
        if step.shard:
            raise KeyboardInterrupt

    with pytest.raises(ExtractionInterrupted, match="Run the same command again"):
        by(cluster, folder, tmp_path / "c", progress=stop)
    done = len(Cache.open(tmp_path / "c", allow_incomplete=True).finished)
    assert 1 <= done < 11
    report = by(cluster, folder, tmp_path / "c")
    assert report.shards_written == report.shards - done
    assert contents(tmp_path / "c") == alone["float16"]


COORDINATOR = """
import sys; sys.path[:0] = {path!r}
from functools import partial
from pathlib import Path
from test_extract_workers import WorkerPool, ROWS, SMALL, extract_inputs, load_backbone
load = partial(load_backbone, {model!r})
pool = WorkerPool(load=load, scheduler={address!r})
extract_inputs(load(), ROWS, Path({out!r}), pool=pool, **SMALL)
"""


def test_a_killed_coordinator_is_resumed(cluster, folder, alone, tmp_path) -> None:
    out = tmp_path / "c"
    code = COORDINATOR.format(path=sys.path, model=str(folder), out=str(out), address=cluster[0])
    running = subprocess.Popen([sys.executable, "-c", code])
    ledger, end = out / "ledger.jsonl", time.monotonic() + 60
    while not (ledger.exists() and ledger.read_bytes()):
        assert running.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    running.kill()
    running.wait()
    by(cluster, folder, out)
    assert contents(out) == alone["float16"]


def test_a_worker_with_other_weights_is_refused(cluster, folder, tmp_path) -> None:
    other = save_tiny("bert", tmp_path / "other", seed=1)
    with pytest.raises(OtherBackbone, match=r"weights\.sha256: existing cache .*this worker"):
        by(cluster, folder, tmp_path / "c", load=partial(load_backbone, str(other)))


def test_a_shard_that_is_not_here_does_not_count(cluster, folder, tmp_path, monkeypatch) -> None:
    job = module.ShardJob
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(
        "pipeline.extraction.fill.ShardJob", lambda **given: job(**(given | {"root": elsewhere}))
    )
    with pytest.raises(CacheDamaged, match="let the workers see the same folder"):
        by(cluster, folder, tmp_path / "c")


def test_a_scheduler_that_does_not_answer_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.3)
    with (
        pytest.raises(WorkersFailed, match="no Dask scheduler answers"),
        workers_of(WorkerPool(load=print, scheduler="tcp://127.0.0.1:9")),
    ):
        raise AssertionError("reached")


def test_without_distributed_the_package_is_named(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "pipeline.extraction.workers")
    pool = WorkerPool(load=partial(load_backbone, str(folder)), workers=2)
    with pytest.raises(PipelineError, match=r"distributed.*unipt\[workers\]"):
        extract_inputs(pool.load(), ROWS, tmp_path / "c", pool=pool, **SMALL)


def test_starting_workers_changes_no_variable_of_this_process(monkeypatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with workers_of(WorkerPool(load=print, workers=1)) as client:
        assert client.run(os.environ.get, "OMP_NUM_THREADS")
        assert os.environ["OMP_NUM_THREADS"] == "1"  # what a nanny does, and must be undone
    assert dict(os.environ) == before


def test_one_worker_a_gpu_when_there_are_several() -> None:
    found = worker_environments(3, threads=4, gpus=2, visible="5,GPU-a1")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["5", "GPU-a1", "5"]
    assert all(each["OMP_NUM_THREADS"] == "4" for each in found)
    found = worker_environments(2, threads=1, gpus=2, visible=None)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["0", "1"]
    for gpus in (0, 1):
        assert (
            "CUDA_VISIBLE_DEVICES"
            not in worker_environments(2, threads=1, gpus=gpus, visible=None)[0]
        )


def test_workers_share_the_cores(monkeypatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert [WorkerPool(load=print, workers=n).threads_each for n in (1, 4, 5, 40)] == [16, 4, 3, 1]
    assert WorkerPool(load=print, scheduler="tcp://x:1").threads_each is None


def test_the_config_says_who_computes(folder, tmp_path) -> None:
    given = {"backbone": str(folder), "out": str(tmp_path), "data": {"train": "rows.tsv"}}
    assert ExtractConfig.build(given).worker_pool(None) is None
    pool = ExtractConfig.build(given | {"workers": 3}).worker_pool(None)
    assert (pool.workers, pool.scheduler) == (3, None)
    elsewhere = ExtractConfig.build(given | {"scheduler": "tcp://x:1"}).worker_pool(None)
    assert elsewhere.scheduler == "tcp://x:1"
    with pytest.raises(ConfigError, match="give one"):
        ExtractConfig.build(given | {"workers": 3, "scheduler": "tcp://x:1"})
