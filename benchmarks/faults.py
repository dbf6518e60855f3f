"""Every fault that a cache must survive, made for real, and what happened.

    python -m benchmarks.faults [--runs 1000]

Each fault is done to a small cache (processes are killed with signal 9, a disk is really full where
a small one can be mounted, else a limit on file sizes stands in), and each row says what a reader
was told, what it took to go on, and whether the end is the same to the byte. Then the fuzzer of
`benchmarks.fuzz` spoils the records `--runs` times.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks import fuzz
from benchmarks.common import report
from cache import Cache, CacheError, CacheWriter, Fingerprint, convert, gc, merge, verify
from cache.format.manifest import FORMAT_VERSION

Fault = Callable[[Path], tuple[str, bool]]
FAULTS: dict[str, Fault] = {}
ROOT = Path(__file__).parent.parent
SHARD = "activations/tokens-4/c/1/0/0/0"


def fault(name: str) -> Callable[[Fault], Fault]:
    """Register a fault: given an empty folder, it says what happened and whether all is well."""

    def register(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return register


def contents(path: Path) -> dict[str, bytes]:
    """Return every file but the lock, by relative path."""
    files = (f for f in path.rglob("*") if f.is_file() and f.name != "writer.lock")
    return {str(f.relative_to(path)): f.read_bytes() for f in files}


def told(step: Callable[[], object]) -> str:
    """Return the error that a step gives, in short, or "no error"."""
    try:
        step()
    except (CacheError, ValueError) as error:
        return f"{type(error).__name__}: {textwrap.shorten(str(error), 160, placeholder=' ...')}"
    return "no error"


def read(path: Path) -> None:
    """Open and read everything."""
    if not fuzz.is_right(Cache.open(path)):
        raise RuntimeError("WRONG NUMBERS")


def shorten(text: str, folder: Path) -> str:
    """Leave the folder's name out of a message."""
    return " ".join(text.replace(str(folder) + "/", "").split())


def harmed(name: str, harm: Callable[[Path], object], shards: int) -> None:
    """Register a fault of a finished cache: told, repaired, made again."""

    def run(folder: Path) -> tuple[str, bool]:
        path = folder / "cache"
        fuzz.make(path)
        good = contents(path)
        harm(path)
        message = told(lambda: read(path))
        verify(path, repair=True)
        redone = fuzz.make(path)
        same = contents(path) == good and len(redone) == shards
        then = f"{len(redone)} shard(s) made again, equal to the byte: {same}"
        return f"{message} -> verify --repair, {then}", same and message != "no error"

    FAULTS[name] = run


def flip(file: Path, at: int = 5) -> None:
    """Change one bit."""
    data = bytearray(file.read_bytes())
    data[at] ^= 4
    file.write_bytes(data)


def replace(file: Path, old: bytes, new: bytes) -> None:
    """Edit a file."""
    file.write_bytes(file.read_bytes().replace(old, new))


def tear(file: Path) -> None:
    """Cut the last line of a file in half."""
    file.write_bytes(file.read_bytes()[:-40])


harmed("flipped byte", lambda p: flip(p / SHARD), 1)
harmed("truncated shard", lambda p: os.truncate(p / SHARD, 50), 1)
harmed("missing shard", lambda p: (p / SHARD).unlink(), 1)
harmed(
    "a shard in the place of another",
    lambda p: shutil.copy(p / SHARD.replace("c/1", "c/0"), p / SHARD),
    1,
)
harmed("torn last ledger line", lambda p: tear(p / "ledger.jsonl"), 1)
harmed(
    "edited metadata of an array",
    lambda p: replace(p / "activations/tokens-4/zarr.json", b"float16", b"float32"),
    0,
)
harmed("damaged index", lambda p: flip(p / "index/block/c/0"), 0)

RUN = """
import sys
from pathlib import Path
from benchmarks import fuzz, faults
from cache import convert, gc, merge
folder = Path(sys.argv[1])
print("ready", flush=True)
{code}
"""


def spawn(code: str, folder: Path) -> subprocess.Popen[str]:
    """Start a process that runs `code` on `folder`; return when it has imported everything."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN.format(code=textwrap.dedent(code)), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if process.stdout is None or process.stdout.readline() != "ready\n":
        raise RuntimeError("the process did not start")
    return process


def sources(folder: Path) -> None:
    """Write two caches to join."""
    fuzz.make(folder / "a")
    shutil.copytree(folder / "a", folder / "b")


def killed(name: str, code: str, times: int = 5) -> None:
    """Register a command that is killed at random moments, then run to its end."""

    def run(folder: Path) -> tuple[str, bool]:
        space = {"fuzz": fuzz, "convert": convert, "gc": gc, "merge": merge}
        whole, broken = folder / "whole", folder / "broken"
        for each in (whole, broken):
            sources(each)
        exec(code, space | {"folder": whole})
        rng = np.random.default_rng()
        states = []
        for _ in range(times):
            process = spawn(code, broken)
            time.sleep(float(rng.uniform(0.0, 0.4)))
            process.kill()
            process.communicate()
            out = broken / "out"
            states.append("done" if (out / "COMPLETE.json").exists() else _shards(out))
        exec(code, space | {"folder": broken})
        same = contents(whole) == contents(broken)
        after = f", shards after each: {', '.join(states)}" if (whole / "out").exists() else ""
        return f"{times} kills{after}; run to the end: equal to the byte", same

    FAULTS[f"kill -9 in {name}"] = run


def _shards(path: Path) -> str:
    ledger = path / "ledger.jsonl"
    return str(ledger.read_bytes().count(b"\n") if ledger.is_file() else 0)


killed("the writer", "fuzz.make(folder / 'out')")
killed("merge", "merge([folder / 'a', folder / 'b'], folder / 'out')")
killed("convert", "convert(folder / 'a', folder / 'out', dtype='float32', block_tokens=15)")
killed("gc", "(folder / 'a/ledger.jsonl.partial').touch(); gc(folder, delete=True)", 3)


@fault("full disk")
def _full(folder: Path) -> tuple[str, bool]:
    fuzz.make(folder / "whole")
    small = folder / "disk"
    small.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", small],
        check=False,
        capture_output=True,
    ).returncode
    try:
        limit = (
            ""
            if mounted
            else "import resource, signal\n"
            + textwrap.dedent(
                """
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
            """
            )
        )
        code = limit + "\ntry: fuzz.make(folder)\nexcept Exception as error: print(error)"
        message = spawn(code, small / "c").communicate()[0].strip()
        leftovers = gc(small).items if (small / "c").exists() else ()
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=10m", small], check=True)
        fuzz.make(small / "c")
        same = contents(small / "c") == contents(folder / "whole")
        means = "tmpfs of 120 kB" if mounted else "limit on file sizes"
        partial = [item for item in leftovers if item.path.suffix == ".partial"]
        return f"{means}: {message} -> more room, run again", (
            same and "no room" in message and not partial
        )
    finally:
        if mounted:
            subprocess.run(["umount", small], check=True)


@fault("stale lock of a killed writer")
def _stale(folder: Path) -> tuple[str, bool]:
    code = "w = fuzz.writer(folder / 'c'); fuzz.fill(w, 0); print('in', flush=True)\nimport time\n"
    process = spawn(code + "time.sleep(60)", folder)
    if process.stdout is not None:
        process.stdout.readline()
    while_alive = told(lambda: fuzz.writer(folder / "c"))
    process.kill()
    process.communicate()
    fuzz.make(folder / "c")
    read(folder / "c")
    return f"alive: {while_alive}; killed: the next writer goes on", "CacheLocked" in while_alive


@fault("two writers")
def _two(folder: Path) -> tuple[str, bool]:
    with fuzz.writer(folder / "c"):
        message = told(lambda: fuzz.writer(folder / "c"))
    return f"the second: {message}", "CacheLocked" in message


@fault("edited root metadata")
def _root(folder: Path) -> tuple[str, bool]:
    fuzz.make(folder / "c")
    replace(folder / "c/zarr.json", b"made up", b"made op")
    message = told(lambda: verify(folder / "c", repair=True))
    replace(folder / "c/zarr.json", b"made op", b"made up")
    read(folder / "c")
    return f"{message}; put back: reads right", "was exchanged" in message


@fault("newer version")
def _newer(folder: Path) -> tuple[str, bool]:
    fuzz.make(folder / "c")
    found = f'"version": {FORMAT_VERSION}'.encode()
    replace(folder / "c/zarr.json", found, b'"version": 999')
    message = told(lambda: read(folder / "c"))
    return message, "CacheVersionError" in message


@fault("read-only cache")
def _read_only(folder: Path) -> tuple[str, bool]:
    fuzz.make(folder / "c")
    for file in (folder / "c").rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    message = told(lambda: read(folder / "c"))
    message = told(lambda: verify(folder / "c")) if message == "no error" else message
    for file in (folder / "c").rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    return f"reads and verifies: {message}", message == "no error"


@fault("path traversal in a tap name")
def _traversal(folder: Path) -> tuple[str, bool]:
    fuzz.make(folder / "c")
    replace(folder / "c/zarr.json", b'"layer.1"', b'"../../x"')
    fuzz.forge(folder / "c")
    message = told(lambda: read(folder / "c"))
    return f"checksums forged: {message}", "tap name" in message


@fault("row ids that are not UTF-8")
def _not_text(folder: Path) -> tuple[str, bool]:
    fuzz.make(folder / "c")
    flip(folder / "c/index/row_id_bytes/c/0", 6)
    (folder / "c/index/row_id_bytes/c/0").write_bytes(
        b"\xff" + (folder / "c/index/row_id_bytes/c/0").read_bytes()[1:]
    )
    fuzz.forge(folder / "c")
    message = told(lambda: Cache.open(folder / "c").row_ids)
    return f"checksums forged: {message}", "not UTF-8" in message


@fault("absurd size in the metadata")
def _absurd(folder: Path) -> tuple[str, bool]:
    fuzz.make(folder / "c")
    replace(folder / "c/zarr.json", b'"n_samples": 24', b'"n_samples": %d' % 2**40)
    fuzz.forge(folder / "c")
    before = fuzz.peak_mib()
    message = told(lambda: read(folder / "c"))
    grown = fuzz.peak_mib() - before
    return f"checksums forged: {message} (+{grown:.0f} MiB)", "Error" in message or grown < 50


@fault("NaN and overflow in activations")
def _nan(folder: Path) -> tuple[str, bool]:
    messages = []
    for bad in (float("nan"), 1e6):
        with fuzz.writer(folder / f"c{bad}") as writing:
            samples = writing.samples_of(0)
            values = {
                t.name: torch.cat([fuzz.values(t, i) for i in samples.tolist()]) for t in fuzz.TAPS
            }
            values["layer.1"][3, 1] = bad
            messages.append(told(lambda: _put(writing, values)))  # noqa: B023 - called at once
    named = all("tap layer.1, row 'row/" in message for message in messages)
    return " | ".join(messages), named


def _put(writing: CacheWriter, values: dict[str, torch.Tensor]) -> None:
    with writing.shard(0) as buffer:
        buffer.put(writing.samples_of(0), values)


@fault("0, 1 and 100,000 tokens")
def _sizes(folder: Path) -> tuple[str, bool]:
    done = []
    for count in (None, 1, 100_000):
        lengths = np.array([] if count is None else [count], np.int64)
        with CacheWriter.create(
            folder / str(count),
            taps=fuzz.TAPS[:1],
            lengths={"tokens": lengths},
            keys=np.zeros((len(lengths), 16), np.uint8),
            row_to_sample=np.arange(len(lengths)),
            row_ids=[f"row/{i}" for i in range(len(lengths))],
            dtype="float16",
            fingerprint=Fingerprint({}),
        ) as writing:
            numbers = torch.arange(float(lengths.sum()) * 4).view(-1, 4) % 2000
            for shard in writing.pending:
                with writing.shard(shard) as buffer:
                    buffer.put(writing.samples_of(shard), {"layer.0": numbers})
            writing.finish()
        found = Cache.open(folder / str(count)).read(np.arange(len(lengths)))["layer.0"]
        done.append(torch.equal(found.float(), numbers))
    return "no row, one token, one row of 100,000: read back equal", all(done)


@click.command()
@click.option("--runs", default=1000, show_default=True, help="Runs of the fuzzer.")
@click.option("--seed", default=0, show_default=True, help="Seed of the fuzzer.")
def main(runs: int, seed: int) -> None:
    """Make every fault, then spoil records at random; fail if anything was lost or wrong."""
    rows = []
    for name, run in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            what, good = run(Path(folder))
            rows.append({"fault": name, "what": shorten(what, Path(folder)), "good": good})
    lines = [f"{'ok ' if r['good'] else 'BAD'} {r['fault']}: {r['what']}" for r in rows]
    with tempfile.TemporaryDirectory() as folder:
        counts, bad = fuzz.fuzz(Path(folder), runs, seed)
    lines.append(
        f"fuzzer: {runs} runs (every second with forged checksums): "
        + ", ".join(f"{count} {name}" for name, count in counts.most_common())
        + f"; {len(bad)} bad; peak memory {fuzz.peak_mib():.0f} MiB"
    )
    report("faults", {"faults": rows, "fuzzer": dict(counts), "bad": bad}, lines + bad)
    sys.exit(1 if bad or not all(r["good"] for r in rows) else 0)


if __name__ == "__main__":
    main()
