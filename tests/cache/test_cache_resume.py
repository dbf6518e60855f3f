import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cachekit import LONG as INTERRUPTED
from cachekit import Killed, Sample, contents, cut_off_at, frame_taps, token_taps

import cache
from cache import Cache, CacheFull, verify
from cache.storage.location import files_below
from cache.writing import writer as writer_module

ROOT = Path(cache.__file__).parent.parent
HERE = Path(__file__).parent
SLOW = """
import sys, time
sys.path[:0] = {paths!r}
from cachekit import LONG
sample = LONG[{kind!r}]
print("ready", flush=True)
with sample.writer({path!r}, overlap={overlap}) as writer:
    for shard in writer.pending:
        sample.fill(writer, shard)
        print("shard", shard, flush=True)
        time.sleep(0.002)
    writer.finish()
"""
LONG = INTERRUPTED["tokens"]


def start(path, kind, overlap):
    code = SLOW.format(paths=[str(ROOT), str(HERE)], path=str(path), kind=kind, overlap=overlap)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def finish(sample, path, **extra):
    """Resume to the end; return the shards that had to be done."""
    with sample.writer(path, **extra) as writer:
        todo = writer.pending
        for shard in todo:
            sample.fill(writer, shard)
        writer.finish()
    return todo


@pytest.mark.parametrize(
    ("kind", "overlap"), [("tokens", False), ("tokens", True), ("frames", True)]
)
def test_kill_9_then_resume_gives_the_same_bytes(tmp_path, kind, overlap):
    sample = INTERRUPTED[kind]
    whole = contents(sample.write(tmp_path / "whole"))
    rng = np.random.default_rng()
    path = tmp_path / "killed"
    done: set[int] = set()
    for _ in range(2):
        process = start(path, kind, overlap)
        assert process.stdout.readline() == "ready\n"
        time.sleep(float(rng.uniform(0.0, 0.06)))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        with sample.writer(path) as writer:
            finished = set(range(writer.layout.n_shards)) - set(writer.pending)
        assert done <= finished
        done = finished
    todo = finish(sample, path)
    assert not done & set(todo)
    assert contents(path) == whole
    assert verify(path).ok


@pytest.mark.parametrize(
    ("taps", "size"), [(token_taps(), 10), (frame_taps(), {"frames": 4})], ids=["tokens", "frames"]
)
def test_cut_off_at_every_step_then_resumed_gives_the_same_bytes(tmp_path, taps, size):
    sample = Sample(lengths=(3, 8, 5, 9), taps=taps, block_tokens=size)
    whole = contents(sample.write(tmp_path / "whole"))
    count, cut = 0, True
    while cut:
        count += 1
        path = tmp_path / str(count)
        with pytest.MonkeyPatch.context() as patch:
            cut_off_at(patch, count)
            try:
                sample.write(path)
                cut = False
            except Killed:
                pass
        finish(sample, path)
        assert contents(path) == whole, f"cut off at step {count}"
    assert count > 80


def test_finished_shards_are_kept_and_order_does_not_matter(tmp_path):
    whole = contents(LONG.write(tmp_path / "whole"))
    with LONG.writer(tmp_path / "c") as writer:
        first = writer.pending[::-1][:4]
        for shard in first:
            LONG.fill(writer, shard)
    assert not set(finish(LONG, tmp_path / "c", overlap=True)) & set(first)
    assert contents(tmp_path / "c") == whole
    assert finish(LONG, tmp_path / "c") == ()
    assert contents(tmp_path / "c") == whole


@pytest.mark.parametrize("tail", [b"", b"{", b'{"shard":1,"sa', b"\xff\xfe\n", b"[]\n"])
def test_a_torn_last_line_costs_one_shard(tmp_path, tail):
    whole = contents(LONG.write(tmp_path / "whole"))
    with LONG.writer(tmp_path / "c") as writer:
        for shard in (0, 1, 2):
            LONG.fill(writer, shard)
    ledger = tmp_path / "c" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:2]) + lines[2][: len(tail) * 3] + tail)
    assert Cache.open(tmp_path / "c", allow_incomplete=True).finished == {0, 1}
    assert 2 in finish(LONG, tmp_path / "c")
    assert contents(tmp_path / "c") == whole


def test_leftovers_are_removed(tmp_path):
    whole = contents(LONG.write(tmp_path / "whole"))
    path = LONG.write(tmp_path / "c")
    (path / "activations/tokens-4/c/1/0/0/0.partial").write_bytes(b"half")
    (path / "ledger.jsonl.partial").write_bytes(b"half")
    (path / "activations/tokens-4/c/99").mkdir()
    (path / "activations/tokens-4/c/99/0").write_bytes(b"not in the ledger")
    assert finish(LONG, path) == ()
    assert contents(path) == whole


def test_a_leftover_may_go_while_it_is_removed(tmp_path, monkeypatch):
    """A worker of a killed run that finishes its shard meanwhile."""
    path = LONG.write(tmp_path / "c")
    gone = {"activations/tokens-4/c/1/0/0/0.675a56ca5337.partial": 4}
    monkeypatch.setattr(writer_module, "files_below", lambda root: files_below(root) | gone)
    assert finish(LONG, path) == ()


def test_what_a_killed_worker_leaves_is_removed_at_the_end(tmp_path):
    whole = contents(LONG.write(tmp_path / "whole"))
    with LONG.writer(tmp_path / "c") as writer:
        for shard in writer.pending:
            LONG.fill(writer, shard)
        left = tmp_path / "c" / "activations/tokens-4/c/1/0/0/0.675a56ca5337.partial"
        left.write_bytes(b"half")
        writer.finish()
    assert contents(tmp_path / "c") == whole


def test_a_failed_shard_leaves_nothing(tmp_path):
    with LONG.writer(tmp_path / "c") as writer:
        before = contents(tmp_path / "c")
        with pytest.raises(RuntimeError, match="model"), writer.shard(0):
            raise RuntimeError("model")
        assert contents(tmp_path / "c") == before
        LONG.fill(writer, 0)
        assert 0 not in writer.pending


FULL = """
import sys, resource, signal
sys.path[:0] = {paths!r}
from cachekit import Sample
from cache import CacheFull
sample = Sample(lengths=tuple(range(1, 41)), block_tokens=200)
with sample.writer({path!r}, overlap={overlap}) as writer:
    sample.fill(writer, writer.pending[0])
    writer.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    try:
        sample.fill(writer, writer.pending[0])
        writer.wait()
    except CacheFull as error:
        print(error)
"""


@pytest.mark.parametrize("overlap", [False, True])
def test_a_full_disk_is_told_and_leaves_a_resumable_cache(tmp_path, overlap):
    sample = Sample(lengths=tuple(range(1, 41)), block_tokens=200)
    whole = contents(sample.write(tmp_path / "whole"))
    code = FULL.format(paths=[str(ROOT), str(HERE)], path=str(tmp_path / "c"), overlap=overlap)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no room for" in done.stdout
    assert "run the same command again to resume" in done.stdout
    assert not list((tmp_path / "c").rglob("*.partial"))
    todo = finish(sample, tmp_path / "c")
    assert 0 not in todo
    assert 1 in todo
    assert contents(tmp_path / "c") == whole


def test_a_ledger_line_without_room_is_undone(tmp_path):
    whole = contents(LONG.write(tmp_path / "whole"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with LONG.writer(tmp_path / "c") as writer:
            for shard in range(12):
                LONG.fill(writer, shard)
            ledger = (tmp_path / "c" / "ledger.jsonl").read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(ledger) + 50, hard))
            with pytest.raises(CacheFull, match=r"ledger\.jsonl"):
                LONG.fill(writer, 12)
            assert (tmp_path / "c" / "ledger.jsonl").read_bytes() == ledger
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            for shard in writer.pending:
                LONG.fill(writer, shard)
            writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(tmp_path / "c") == whole


def test_flushed_in_the_order_that_survives_a_power_cut(tmp_path, monkeypatch):
    """File, then its name, then its folder, and only then the ledger line."""
    events = []
    replace = Path.replace

    def fsync(fd):
        events.append(("flush", Path(f"/proc/self/fd/{fd}").readlink().name))

    def rename(self, target):
        events.append(("rename", Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    with LONG.writer(tmp_path / "c") as writer:
        events.clear()
        LONG.fill(writer, 0)
    assert events[:3] == [("flush", "0.partial"), ("rename", "0"), ("flush", "0")]
    above = [("flush", name) for name in ("0", "0", "c", "tokens-4")]  # folders made for it
    assert events[3:-1] == above
    assert events[-1] == ("flush", "ledger.jsonl")
