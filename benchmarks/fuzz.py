"""A small cache with known numbers, and a fuzzer over everything in it that is not activations.

A run copies the cache, spoils one record (bytes, or a value inside the JSON), in every second run
makes all checksums agree with the spoiled record again, as only ill will can, and then opens,
reads, lists and verifies it. What may happen: an error of ours, or the right numbers; with forged
checksums also other numbers, since that is then another cache. Never another exception, a hang, or
memory for sizes that a file only claims. About 20 ms a run.
"""

import json
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache import Cache, CacheError, CacheWriter, Fingerprint, TapSpec, gc, info, ls, verify
from cache.format.checksum import crc32c, with_crc
from cache.format.fingerprint import digest
from cache.format.ledger import Entry
from cache.format.manifest import config_of
from cache.format.spec import StorageTypes
from cache.storage.records import read_ledger

LENGTHS = np.random.default_rng(0).integers(1, 12, 24)
TAPS = (
    TapSpec(name="layer.0", kind="tokens", shape=(4,)),
    TapSpec(name="layer.1", kind="tokens", shape=(4,)),
    TapSpec(name="pooled", kind="vector", shape=(3,)),
)
STORED: StorageTypes = "float16"
"""Exact for the numbers of `values`, as any type but int8 is."""
COMPRESSION = "none"
SECONDS = 10
HOSTILE: tuple[Any, ...] = (
    *(-1, 0, 1, 3, 2**31, 2**48, 2**53, 2**63, 2**64, 10**30, 1.5, 1e308, True, None, "", "x"),
    *("../../etc", "a/b", "\0", "\ud800", "9" * 5000, [], [1], {}, {"a": []}, [[[]]], "float64"),
)
GOOD = ("refused", "right", "another cache")


def values(tap: TapSpec, sample: int) -> Tensor:
    """Return the numbers of a sample: [length, D] or [1, D]."""
    rows = int(LENGTHS[sample]) if tap.ragged else 1
    count = rows * tap.shape[0]
    return ((torch.arange(count) * 7 + sample * 13 + len(tap.name)) % 251 - 125.0).view(rows, -1)


def writer(path: Path) -> CacheWriter:
    """Return a writer of the small cache."""
    n = len(LENGTHS)
    return CacheWriter.create(
        path,
        taps=TAPS,
        lengths={"tokens": LENGTHS},
        keys=np.random.default_rng(1).integers(0, 256, (n, 16), np.uint8),
        row_to_sample=np.arange(n),
        row_ids=[f"row/{i} ü" for i in range(n)],
        dtype=STORED,
        compression=COMPRESSION,
        fingerprint=Fingerprint({"weights": "made up"}),
        block_tokens=20,
        blocks_per_shard=2,
    )


def fill(writing: CacheWriter, shard: int) -> None:
    """Write one shard."""
    samples = writing.samples_of(shard)
    with writing.shard(shard) as buffer:
        buffer.put(
            samples, {t.name: torch.cat([values(t, i) for i in samples.tolist()]) for t in TAPS}
        )


def make(path: Path) -> tuple[int, ...]:
    """Write the small cache, or go on; return the shards that were written."""
    with writer(path) as writing:
        pending = writing.pending
        for shard in pending:
            fill(writing, shard)
        writing.finish()
    return pending


def is_right(cache: Cache) -> bool:
    """Return whether a cache holds exactly the numbers that were written."""
    n = len(LENGTHS)
    if cache.n_samples != n or cache.row_ids != tuple(f"row/{i} ü" for i in range(n)):
        return False
    found = cache.read(np.arange(n))
    return found.keys() == {tap.name for tap in TAPS} and all(
        torch.equal(found[tap.name].float(), torch.cat([values(tap, i) for i in range(n)]))
        for tap in TAPS
    )


def records(path: Path) -> list[Path]:
    """Return every file that is not a shard, nor the empty lock."""
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.name != "writer.lock"
        and not (file.relative_to(path).parts[0] == "activations" and file.name != "zarr.json")
    )


def spoil(path: Path, rng: random.Random) -> str:
    """Change one record of a cache; return what was done."""
    file = rng.choice(records(path))
    name = str(file.relative_to(path))
    if file.suffix in (".json", ".jsonl") and rng.random() < 0.6:
        try:
            return f"{name}: {_spoil_json(file, rng)}"
        except (ValueError, TypeError, IndexError, AttributeError):
            pass  # spoiled before, and no JSON any more
    data = bytearray(file.read_bytes())
    if not data:
        return name
    at, to = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    kind = rng.choice(("bit", "byte", "cut", "drop", "repeat", "noise", "zeros"))
    if kind == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[at] = rng.randrange(256)
    elif kind == "cut":
        del data[at:]
    elif kind == "drop":
        del data[at:to]
    elif kind == "repeat":
        data[at:at] = data[at:to]
    elif kind == "noise":
        data[at : at + 8] = rng.randbytes(8)
    else:
        data[at:to] = bytes(to - at)
    file.write_bytes(data)
    return f"{name}: {kind} at {at}"


def _spoil_json(file: Path, rng: random.Random) -> str:
    """Put a hostile value in a random place of a JSON file (of a random line of the ledger)."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    if not lines:
        return "empty"
    number = rng.randrange(len(lines))
    tree = json.loads(lines[number])
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in list(items):
            spots.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(tree)
    node, key = rng.choice(spots)
    what = rng.choice(("value", "value", "value", "delete", "nudge"))
    if what == "delete":
        del node[key]
    elif what == "nudge" and isinstance(node[key], int):
        node[key] += rng.choice((-1, 1, 8, 1000))
    else:
        node[key] = rng.choice(HOSTILE)
    if file.suffix == ".jsonl":
        lines[number] = json.dumps(tree, separators=(",", ":"))
        file.write_text("".join(f"{line}\n" for line in lines))
    else:
        file.write_text(json.dumps(tree, indent=2))
    return f"{what} at {key!r}"


def forge(path: Path) -> None:
    """Make every checksum agree with the records as they are now, as far as they can be read."""
    for file in (path / "index").rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            file.write_bytes(with_crc(file.read_bytes()[:-4]))
    config = ""
    try:
        root = json.loads((path / "zarr.json").read_bytes())
        crcs = root["attributes"]["unipt_cache"]["index_crc32c"]
        for name in crcs:
            for file in (path / "index" / name / "c").rglob("*"):
                if file.is_file():
                    crcs[name] = f"{crc32c(file.read_bytes()[:-4]):08x}"
        (path / "zarr.json").write_text(json.dumps(root, indent=2))
        config = config_of(root["attributes"]["unipt_cache"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    lines = b""
    for shard, entry in sorted(read_ledger(path / "ledger.jsonl", tolerant=True).items()):
        lines += Entry(
            shard=shard, samples=entry.samples, files=entry.files, config=config
        ).to_line()
    (path / "ledger.jsonl").write_bytes(lines)
    record = {"config": config, "ledger": digest(lines), "n_shards": lines.count(b"\n")}
    (path / "COMPLETE.json").write_text(json.dumps(record, indent=2))


class Hang(BaseException):
    """A step took longer than `SECONDS`."""


def _alarm(*_: object) -> None:
    raise Hang


def outcome(path: Path, *, forged: bool) -> str:
    """Use a spoiled cache in every way; return one of `GOOD`, or what went wrong."""
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS)
    try:
        seen = [_attempt(lambda: is_right(Cache.open(path)))]
        seen.append(_attempt(lambda: _read_part(path)))
        for look in (verify, info, ls, gc):
            seen.append(_attempt(lambda look=look: look(path) and None))  # type: ignore[misc]
    except Hang:
        return "hang"
    finally:
        signal.alarm(0)
    crashes = [each for each in seen if each.startswith("crash")]
    if crashes:
        return crashes[0]
    if "wrong" in seen:
        return "another cache" if forged else "wrong numbers"
    return seen[0]


def _read_part(path: Path) -> bool | None:
    cache = Cache.open(path, allow_incomplete=True)
    try:
        cache.read(np.arange(min(3, cache.n_samples)))
    except CacheError:
        return None
    return is_right(cache) if len(cache.finished) == cache.geometry.n_shards else None


def _attempt(step: Callable[[], bool | None]) -> str:
    try:
        return {True: "right", False: "wrong", None: "looked"}[step()]
    except CacheError:
        return "refused"
    except (Exception, RecursionError) as error:
        return f"crash: {type(error).__name__}: {str(error)[:200]}"


def fuzz(folder: Path, runs: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Spoil and use a cache `runs` times.

    Returns:
        How often each outcome came, and a description of every bad one.
    """
    make(folder / "good")
    if outcome(folder / "good", forged=False) != "right":
        raise RuntimeError("the unspoiled cache does not read right")
    counts: Counter[str] = Counter()
    bad: list[str] = []
    for run in range(runs):
        rng = random.Random(f"{seed}/{run}")
        path = folder / "spoiled"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(folder / "good", path)
        forged = run % 2 == 1
        what = [spoil(path, rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        if forged:
            forge(path)
        result = outcome(path, forged=forged)
        counts[result if result in GOOD else result.split(":")[0]] += 1
        if result not in GOOD:
            bad.append(f"run {run}: {'; '.join(what)}{' (forged)' * forged}: {result}")
    return counts, bad


def peak_mib() -> float:
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
