import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cachekit import Killed, Sample, contents, cut_off_at

import cache
from cache import CacheDamaged, CacheError, CacheIncomplete, convert, gc, merge, verify

ROOT = Path(cache.__file__).parent.parent
HERE = Path(__file__).parent
LEFT = Sample(lengths=tuple(range(1, 41)))


class Other(Sample):
    """Other contents of the same kind."""

    @property
    def keys(self):
        return np.invert(super().keys)


RIGHT = Other(lengths=tuple(range(1, 41)), seed=8)
ACTIONS = {
    "merge": "merge([folder / 'a', folder / 'b'], out)",
    "convert": "convert(folder / 'a', out, dtype='float32', block_tokens=20)",
    "export": "convert(folder / 'a', out, taps=['tokens.layer.1'])",
}
RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from cache import convert, merge
folder, out = Path({folder!r}), Path({out!r})
print("ready", flush=True)
{action}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    Sample(lengths=(9, 8, 7, 3)).write(folder / "a")
    Other(lengths=(4, 9)).write(folder / "b", row_ids=["x", "y"])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    LEFT.write(folder / "a")
    names = [f"other/{i}" for i in range(40)]
    RIGHT.write(folder / "b", row_ids=names)
    return folder


def run(folder, out, name):
    exec(
        ACTIONS[name],
        {"folder": folder, "out": out, **{f: getattr(cache, f) for f in cache.__all__}},
    )


@pytest.mark.parametrize("name", ACTIONS)
def test_kill_9_then_the_same_command_gives_the_same_bytes(folder, tmp_path, name):
    sources = contents(folder)
    run(folder, tmp_path / "whole", name)
    out = tmp_path / "killed"
    code = RUN.format(root=str(ROOT), folder=str(folder), out=str(out), action=ACTIONS[name])
    for wait in np.random.default_rng().uniform(0.0, 0.12, 2):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(float(wait))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    run(folder, out, name)
    assert contents(out) == contents(tmp_path / "whole")
    assert contents(folder) == sources
    assert verify(out).ok


@pytest.mark.parametrize("name", ["merge", "convert"])
def test_cut_off_at_many_steps_it_goes_on(small, tmp_path, name):
    run(small, tmp_path / "whole", name)
    whole = contents(tmp_path / "whole")
    step, cut = 1, True
    while cut:
        out = tmp_path / str(step)
        with pytest.MonkeyPatch.context() as patch:
            cut_off_at(patch, step)
            try:
                run(small, out, name)
                cut = False
            except Killed:
                pass
        if (out / "zarr.json").exists() and not (out / "COMPLETE.json").exists():
            with pytest.raises((CacheIncomplete, CacheDamaged)):
                cache.Cache.open(out)
        run(small, out, name)
        assert contents(out) == whole, f"cut off at step {step}"
        shutil.rmtree(out)
        step += 3
    assert step > 60


def test_gc_cut_off_at_every_step_loses_nothing(folder, tmp_path):
    good = contents(folder / "a")
    good.pop("writer.lock")
    step, cut = 0, True
    while cut:
        step += 1
        path = Path(shutil.copytree(folder / "a", tmp_path / str(step)))
        for stray in ("ledger.jsonl.partial", "activations/tokens-4/c/99/0/0/0"):
            (path / stray).parent.mkdir(parents=True, exist_ok=True)
            (path / stray).write_bytes(b"stray")
        with pytest.MonkeyPatch.context() as patch:
            cut_off_at(patch, step)
            try:
                gc(path, delete=True)
                cut = False
            except Killed:
                pass
        assert good.items() <= contents(path).items()
        assert verify(path).ok
        gc(path, delete=True)
        assert contents(path) == good
    assert step > 5


def test_a_full_disk_is_told_and_the_same_command_goes_on(folder, tmp_path):
    convert(folder / "a", tmp_path / "whole", dtype="float32", block_tokens=200)
    out = tmp_path / "c"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
        with pytest.raises(CacheError, match=r"no room for .* run the same command again"):
            convert(folder / "a", out, dtype="float32", block_tokens=200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(out.rglob("*.partial"))
    convert(folder / "a", out, dtype="float32", block_tokens=200)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["merge", "convert"])
def test_a_damaged_source_stops_and_does_not_spread(folder, tmp_path, name):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = next(f for f in sorted((copy / "a/activations/tokens-4/c").rglob("*")) if f.is_file())
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    with pytest.raises(CacheDamaged, match="fails its checksum"):
        run(copy, tmp_path / "out", name)
    with pytest.raises(CacheIncomplete):
        cache.Cache.open(tmp_path / "out")


def test_a_second_merge_into_one_folder_is_refused(folder, tmp_path):
    def while_it_writes(done, total):
        with pytest.raises(cache.CacheLocked):
            merge([folder / "a", folder / "b"], tmp_path / "c")

    merge([folder / "a", folder / "b"], tmp_path / "c", progress=while_it_writes)
    assert verify(tmp_path / "c").ok
