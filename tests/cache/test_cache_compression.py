"""Compressed chunks: the same numbers everywhere, and every check of uncompressed ones."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from cachekit import Killed, Sample, contents, cut_off_at, frame_taps, token_taps
from hypothesis import given, settings
from hypothesis import strategies as st
from onesource import OneSource

from benchmarks import fuzz
from cache import (
    Cache,
    CacheDamaged,
    CacheError,
    FingerprintMismatch,
    TapSpec,
    convert,
    info,
    merge,
    plan_layout,
    verify,
)
from cache.format.compression import compress, decompress, frame_bytes, most_bytes
from cache.format.ledger import Entry
from cache.format.shard_file import pack_shard

MAPS = [TapSpec(name="stage", kind="map", shape=(8, 4, 4)), *token_taps(1)]
KINDS: dict[str, list[TapSpec]] = {"tokens": token_taps(), "frames": frame_taps(), "maps": MAPS}
ALL = np.arange(12)


class Sparse(Sample):
    """Rectified states, and rows that are longer, so that there is something to gain."""

    def values(self, tap: TapSpec, samples: Any) -> torch.Tensor:
        return super().values(tap, samples).relu()


def sparse(kind: str = "tokens", **changes: Any) -> Sparse:
    taps = [*token_taps(3, width=64)] if kind == "tokens" else KINDS[kind]
    size: Any = {"frames": 10} if kind == "frames" else 10
    return Sparse(**({"taps": taps, "block_tokens": size} | changes))


def right(cache: Cache, sample: Sample) -> bool:
    found = cache.read(np.arange(sample.n))
    return all(
        torch.equal(found[tap.name].float(), sample.values(tap, range(sample.n)))
        for tap in sample.taps
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return sparse().write(tmp_path / "cache", compression="zstd")


def shard_file(path: Path, shard: int = 1) -> Path:
    return path / f"activations/tokens-64/c/{shard}/0/0/0"


def repair(path: Path) -> tuple[int, ...]:
    """Extract again into the folder, checking every file; return the shards that were redone."""
    sample = sparse()
    with sample.writer(path, check=True, compression="zstd") as writer:
        redone = writer.pending
        for shard in redone:
            sample.fill(writer, shard)
        writer.finish()
    return redone


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    compression=st.sampled_from(["zstd", "zstd:1", "zstd:19"]),
    shards=st.integers(1, 3),
    noise=st.booleans(),
    asked=st.lists(st.integers(0, 11), max_size=6),
)
def test_any_compressed_cache_holds_the_numbers_of_a_plain_one(
    kind: str, dtype: str, compression: str, shards: int, noise: bool, asked: list[int]
) -> None:
    sample = sparse(kind, dtype=dtype, blocks_per_shard=shards)
    if noise:  # which does not shrink
        sample.values = Sample.values.__get__(sample)  # type: ignore[method-assign]
    with TemporaryDirectory() as folder:
        path = sample.write(Path(folder) / "c", compression=compression)
        plain = sample.write(Path(folder) / "plain")
        size = sum(map(len, contents(path).values()))
        layout = plan_layout(n_samples=sample.n, compression=compression, **sample.plan_kwargs)
        assert size <= layout.total_bytes
        one, two = Cache.open(path), Cache.open(plain)
        assert one.nbytes == verify(path).nbytes == info(path).nbytes
        assert verify(path).ok
        assert f"({compression}), {one.nbytes:,} bytes" in info(path).render()
        samples = np.array(asked, np.int64)
        for tap, values in one.read(samples).items():
            assert torch.equal(values, two.read(samples, [tap])[tap])
        here, there = (zarr.open_group(each, mode="r")["activations"] for each in (path, plain))
        for name, array in there.arrays():
            assert np.array_equal(here[name][:], array[:])


def test_zeros_take_less_and_other_programs_read_them(tmp_path: Path, path: Path) -> None:
    plain = sparse().write(tmp_path / "plain")
    assert Cache.open(path).nbytes < 0.7 * Cache.open(plain).nbytes
    spec = {"driver": "zarr3", "kvstore": {"driver": "file"}}
    arrays = []
    for each in (path, plain):
        spec["kvstore"] = {"driver": "file", "path": str(each / "activations/tokens-64")}
        arrays.append(tensorstore.open(spec, read=True).result().read().result())
    assert np.array_equal(*arrays)
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        found = zarr.open_group(path, mode="r")["activations/tokens-64"][:]
    assert np.array_equal(found, arrays[0])


def test_batches_are_the_same(tmp_path: Path, path: Path) -> None:
    plain = Cache.open(sparse().write(tmp_path / "plain"))
    options: Any = {"taps": None, "batch_size": 4, "seed": 0, "threads": 2}
    for tier in ("host", "disk"):
        loaders = (OneSource(c, ALL, tier=tier, **options) for c in (Cache.open(path), plain))
        for one, two in zip(*(loader.epoch(1) for loader in loaders), strict=True):
            assert torch.equal(one.values, two.values)


def test_in_a_store(path: Path) -> None:
    url = "memory://compressed/c.zarr"
    sparse().write(url, compression="zstd")  # type: ignore[arg-type]
    assert verify(url).ok
    assert right(Cache.open(url), sparse())
    assert Cache.open(url).nbytes == Cache.open(path).nbytes


@pytest.mark.parametrize("verify_when", ["always", "first"])
def test_every_flipped_byte_of_a_shard_is_noticed(path: Path, verify_when: Any) -> None:
    file = shard_file(path)
    good = file.read_bytes()
    places = np.random.default_rng(0).choice(len(good), 60, replace=False).tolist()
    used = Cache.open(path)
    inside = np.flatnonzero(used.table.block // used.geometry.blocks_per_shard == 1)
    noticed = 0
    for place in [*places, 0, 4, len(good) - 1, len(good) - 5]:
        data = bytearray(good)
        data[place] ^= 0x10
        file.write_bytes(data)
        assert not verify(path).ok, place
        try:
            Cache.open(path, verify=verify_when).read(inside)
        except CacheDamaged as error:
            noticed += "tokens-64" in str(error)
        else:
            raise AssertionError(f"byte {place} was not noticed")
    assert noticed == 64
    assert repair(path) == (1,)
    assert file.read_bytes() == good


@pytest.mark.parametrize("harm", ["truncate", "lengthen", "remove", "empty"])
def test_a_shard_of_another_size_is_refused_then_redone(path: Path, harm: str) -> None:
    good, file = contents(path), shard_file(path)
    data = file.read_bytes()
    file.write_bytes({"truncate": data[:-1], "lengthen": data + b"\0"}.get(harm, b""))
    if harm == "remove":
        file.unlink()
    with pytest.raises(CacheDamaged, match="tokens-64/c/1"):
        Cache.open(path)
    assert not verify(path).ok
    assert repair(path) == (1,)
    assert contents(path) == good


@pytest.mark.parametrize("check", ["always", "first", "never"])
def test_a_swapped_shard_is_noticed(path: Path, check: Any) -> None:
    """Of the same size it is told by the ledger's checksum, of another one by its size."""
    cache = Cache.open(path, verify=check)
    raw = np.frombuffer(shard_file(path).read_bytes(), np.uint8)
    geometry = cache.geometry
    (stack,) = geometry.stacks
    count = len(geometry.blocks_of(1)) * len(stack.taps)
    starts = raw[-4 - 16 * geometry.entries(stack) : -4].view("<u8").reshape(-1, 2)[:count]
    chunks = [raw[a : a + n - 4].tobytes() for a, n in starts.tolist()]
    swapped, _ = pack_shard(reversed(chunks), geometry.entries(stack))
    assert len(swapped) == len(raw)
    swapped.tofile(shard_file(path))
    inside = np.flatnonzero(cache.table.block // geometry.blocks_per_shard == 1)
    with pytest.raises(CacheDamaged, match="not the file that the ledger lists"):
        Cache.open(path, verify=check).read(inside)
    assert "not the one that the ledger lists" in verify(path).problems[0]
    shutil.copy(shard_file(path, 0), shard_file(path))
    with pytest.raises(CacheDamaged, match="tokens-64/c/1"):
        Cache.open(path, verify=check).read(inside)


def test_a_forged_chunk_that_holds_more_is_refused_before_it_is_made(path: Path) -> None:
    """All checksums agree; what a frame claims is compared, whatever it is."""
    cache = Cache.open(path)
    geometry = cache.geometry
    (stack,) = geometry.stacks
    size, count = geometry.chunk_bytes(stack), len(geometry.blocks_of(0)) * len(stack.taps)
    for held in (0, size - 1, size + 1, 2**22):
        frame = compress(np.zeros(held, np.uint8), 3)
        raw, crc = pack_shard([frame] * count, geometry.entries(stack))
        file = shard_file(path, 0)
        raw.tofile(file)
        lines = [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]
        lines[0]["files"]["tokens-64"] = [len(raw), crc]
        (path / "ledger.jsonl").write_bytes(b"".join(_sealed(line) for line in lines))
        fuzz.forge(path)
        with pytest.raises(CacheDamaged, match=rf"a compressed chunk of {held} bytes instead of"):
            Cache.open(path).read(ALL)


def _sealed(line: dict[str, Any]) -> bytes:
    files = {name: (size, crc) for name, (size, crc) in line["files"].items()}
    low, high = line["samples"]
    return Entry(
        shard=line["shard"], samples=(low, high), files=files, config=line["config"]
    ).to_line()


def test_an_interrupted_writer_goes_on_to_the_same_bytes(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, sample = contents(path), sparse()
    begun = 0
    for count in range(5, 400, 11):
        target = tmp_path / f"cut{count}"
        try:
            with monkeypatch.context() as patch:
                cut_off_at(patch, count)
                sample.write(target, compression="zstd")
            break
        except Killed:
            with pytest.raises(CacheError):
                Cache.open(target)
        begun += (target / "ledger.jsonl").exists()
        sample.write(target, compression="zstd")
        assert contents(target) == whole
    assert begun > 1


def test_a_cache_is_begun_and_goes_on_in_one_compression(tmp_path: Path) -> None:
    sample = sparse()
    with sample.writer(tmp_path / "c", compression="zstd") as writer:
        sample.fill(writer, 0)
    for other in ("none", "zstd:9"):
        with pytest.raises(FingerprintMismatch, match="compression"):
            sample.writer(tmp_path / "c", compression=other)
    for wrong in ("gzip", "zstd:0", "zstd:23", "zstd:", "ZSTD", "", 3, None):
        with pytest.raises(ValueError, match="'zstd:LEVEL'"):
            sample.writer(tmp_path / "d", compression=wrong)


@pytest.mark.parametrize("value", [3, None, "", "none", "gzip", "zstd:99", ["zstd"], {}])
def test_an_edited_compression_is_refused(path: Path, value: Any) -> None:
    root = json.loads((path / "zarr.json").read_bytes())
    root["attributes"]["unipt_cache"]["compression"] = value
    (path / "zarr.json").write_text(json.dumps(root, indent=2))
    fuzz.forge(path)
    with pytest.raises(CacheDamaged):
        Cache.open(path)


def test_caches_are_kept_compressed_or_made_so(tmp_path: Path, path: Path) -> None:
    sample = sparse()
    plain = sample.write(tmp_path / "plain")
    convert(plain, tmp_path / "packed", compression="zstd")
    assert contents(tmp_path / "packed") == contents(path)
    convert(path, tmp_path / "loose", compression="none")
    assert contents(tmp_path / "loose") == contents(plain)
    convert(path, tmp_path / "floats", dtype="float32")
    assert Cache.open(tmp_path / "floats").geometry.compression == "zstd"
    assert right(Cache.open(tmp_path / "floats"), sample)
    report = merge([path, tmp_path / "packed"], tmp_path / "merged")
    assert report.nbytes == sum(map(len, contents(tmp_path / "merged").values()))
    narrow = convert(path, tmp_path / "one", taps=["tokens.layer.1"])
    assert narrow.nbytes == sum(map(len, contents(tmp_path / "one").values()))
    cache = Cache.open(tmp_path / "merged")
    assert verify(cache.path).ok
    found = cache.read(cache.find(sample.keys))
    for tap in sample.taps:
        assert torch.equal(found[tap.name].float(), sample.values(tap, range(sample.n)))


def test_spoiled_records_of_a_compressed_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "COMPRESSION", "zstd")
    counts, bad = fuzz.fuzz(tmp_path, 40, 3)
    assert bad == []
    assert counts["refused"] > 20


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200_000), st.integers(1, 9), st.booleans())
def test_a_frame_says_what_it_holds(count: int, level: int, noise: bool) -> None:
    data = np.random.default_rng(0).integers(0, 256 if noise else 1, count, np.uint8)
    frame = compress(data, level)
    assert frame_bytes(frame[:18]) == count
    assert len(frame) <= most_bytes(count)
    into = np.full(count, 7, np.uint8)
    decompress(frame, into)
    assert np.array_equal(into, data)
    for wrong in (np.empty(count + 1, np.uint8), np.empty(count - 1, np.uint8)):
        with pytest.raises(ValueError, match=f"a compressed chunk of {count} bytes"):
            decompress(frame, wrong)
    with pytest.raises(ValueError, match="Zstd decompression error"):
        decompress(frame[:-1], into)


@given(st.binary(max_size=24))
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"a compressed chunk of .* instead of 100000"):
        decompress(data, np.empty(100_000, np.uint8))
