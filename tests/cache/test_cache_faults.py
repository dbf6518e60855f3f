import json
import shutil

import numpy as np
import pytest
import torch
from cachekit import Sample, contents, token_taps
from onesource import OneSource

from cache import (
    ActivationOverflow,
    Cache,
    CacheDamaged,
    CacheError,
    CacheIncomplete,
    CacheLocked,
    CacheNotFound,
    CacheVersionError,
    CacheWriter,
    FingerprintMismatch,
    InvalidTap,
    ShardMisaligned,
    TapSpec,
    verify,
)

SAMPLE = Sample()


@pytest.fixture
def path(tmp_path):
    return SAMPLE.write(tmp_path / "cache")


def shard_file(path, shard=1):
    return path / f"activations/tokens-4/c/{shard}/0/0/0"


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


def repair(path, **extra):
    """Extract again into the folder; return the shards that were redone."""
    with SAMPLE.writer(path, **extra) as writer:
        redone = writer.pending
        for shard in redone:
            SAMPLE.fill(writer, shard)
        writer.finish()
    return redone


def test_a_flipped_byte_is_noticed_and_repaired(path):
    good = contents(path)
    flip(shard_file(path), 5)
    cache = Cache.open(path)
    with pytest.raises(CacheDamaged, match=r"tokens-4/c/1/.*tokens\.layer\.0 of block 2 .*delete"):
        cache.read(np.arange(SAMPLE.n))
    with pytest.raises(CacheDamaged, match="checksum"):
        list(OneSource(cache, np.arange(SAMPLE.n), taps=None, batch_size=4, seed=0).epoch(0))
    (problem,) = verify(path).problems
    assert "tokens-4/c/1/" in problem
    assert "tokens.layer.0 of block 2" in problem
    assert repair(path, check=True) == (1,)
    assert contents(path) == good


def test_verification_can_be_cheaper(path):
    first = Cache.open(path, verify="first")
    first.read(np.arange(SAMPLE.n))
    flip(shard_file(path), 5)
    first.read(np.arange(SAMPLE.n))
    Cache.open(path, verify="never").read(np.arange(SAMPLE.n))
    with pytest.raises(CacheDamaged):
        Cache.open(path, verify="first").read(np.arange(SAMPLE.n))


def test_a_damaged_shard_index_is_noticed(path):
    flip(shard_file(path), shard_file(path).stat().st_size - 20)
    with pytest.raises(CacheDamaged, match="shard index"):
        Cache.open(path).read(np.arange(SAMPLE.n))
    assert "shard index" in verify(path).problems[0]


@pytest.mark.parametrize("check", ["always", "first", "never"])
@pytest.mark.parametrize("own", [True, False])
def test_a_shard_swapped_for_another_of_the_same_size_is_noticed(path, own, check):
    if own:  # of the same cache: every checksum in it is sound
        other = shard_file(path, 0)
    else:
        other = shard_file(Sample(lengths=SAMPLE.lengths[::-1]).write(path.parent / "other"))
    assert other.stat().st_size == shard_file(path).stat().st_size
    shutil.copy(other, shard_file(path))
    assert "not the one that the ledger lists" in verify(path).problems[0]
    cache = Cache.open(path, verify=check)
    inside = np.flatnonzero(cache.table.block // cache.geometry.blocks_per_shard == 1)
    with pytest.raises(CacheDamaged, match="not the file that the ledger lists"):
        cache.read(inside[:1], taps=["tokens.layer.1"])


def test_chunks_swapped_within_a_shard_are_noticed(path):
    file, cache = shard_file(path), Cache.open(path)
    stride = cache.geometry.chunk_bytes(cache.geometry.stacks[0]) + 4
    data = file.read_bytes()
    file.write_bytes(data[stride : 2 * stride] + data[:stride] + data[2 * stride :])
    with pytest.raises(CacheDamaged, match="fails its checksum"):
        cache.read(np.arange(SAMPLE.n))
    assert not verify(path).ok


def test_damage_to_bytes_that_are_not_asked_for_does_not_matter(path):
    flip(shard_file(path), 5)
    Cache.open(path).read(np.arange(SAMPLE.n), taps=["tokens.layer.1"])


@pytest.mark.parametrize("harm", ["truncate", "lengthen", "remove", "empty"])
def test_a_shard_of_the_wrong_size_is_refused_then_redone(path, harm):
    good = contents(path)
    file = shard_file(path)
    data = file.read_bytes()
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes({"truncate": data[:-1], "lengthen": data + b"\0", "empty": b""}[harm])
    with pytest.raises(CacheDamaged, match=r"tokens-4/c/1/0/0/0.*extract again"):
        Cache.open(path)
    assert repair(path) == (1,)
    assert contents(path) == good


def test_a_file_lost_while_reading_is_refused(path):
    cache = Cache.open(path)
    shard_file(path, 0).write_bytes(b"short")
    shard_file(path, 1).unlink()
    for shard, word in ((0, "not the size"), (1, "missing")):
        inside = np.flatnonzero(cache.table.block // 2 == shard)
        with pytest.raises(CacheDamaged, match=word):
            cache.read(inside)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("zarr.json", lambda t: t.replace(b'"n_blocks": ', b'"n_blocks": 1')),
        ("zarr.json", lambda t: t.replace(b"ab12", b"ab13")),
        ("zarr.json", lambda t: t[:-30]),
        ("zarr.json", lambda t: b"[" * 100_000),
        ("zarr.json", lambda t: b"\xff\xfe"),
        ("zarr.json", lambda t: t.replace(b"tokens.layer.1", b"../../layer.1")),
        ("activations/tokens-4/zarr.json", lambda t: t.replace(b"float16", b"float32")),
        ("activations/tokens-4/zarr.json", None),
        ("index/block/c/0", lambda t: t[:3] + bytes([t[3] ^ 1]) + t[4:]),
        ("index/length_tokens/c/0", lambda t: t[:-8]),
        ("index/keys/c/0/0", None),
        ("ledger.jsonl", lambda t: t[:-1]),
        ("ledger.jsonl", lambda t: t.replace(b'"shard":0', b'"shard":9')),
        ("ledger.jsonl", lambda t: b"".join(t.splitlines(True)[1:])),
        ("ledger.jsonl", None),
        ("COMPLETE.json", lambda t: t.replace(b"n_shards", b"n_shardz")),
        ("COMPLETE.json", lambda t: b"{}"),
    ],
)
def test_edited_records_are_refused(path, file, change):
    good = contents(path)
    target = path / file
    if change is None:
        target.unlink()
    else:
        changed = change(target.read_bytes())
        assert changed != target.read_bytes()
        target.write_bytes(changed)
    with pytest.raises(CacheDamaged, match=file.replace(".", r"\.")):
        Cache.open(path)
    if file != "zarr.json":
        repair(path)
        assert contents(path) == good


@pytest.mark.parametrize("name", ["n_samples", "n_blocks", "n_rows", "row_id_bytes", "seed"])
@pytest.mark.parametrize("value", [10**15, 2**62, 10**40, -1, 1.5, "3", None, True])
def test_absurd_numbers_are_refused_before_allocating(path, name, value):
    root = json.loads((path / "zarr.json").read_bytes())
    root["attributes"]["unipt_cache"][name] = value
    (path / "zarr.json").write_text(json.dumps(root, indent=2))
    (path / "COMPLETE.json").unlink()
    with pytest.raises(CacheDamaged):
        Cache.open(path, allow_incomplete=True)


def test_a_newer_version_is_refused(path):
    file = path / "zarr.json"
    file.write_bytes(file.read_bytes().replace(b'"version": 3', b'"version": 4'))
    for action in (Cache.open, verify, SAMPLE.writer):
        with pytest.raises(CacheVersionError, match="version 3"):
            action(path)


def test_nothing_there(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CacheNotFound, match="extract one"):
            Cache.open(path)
    (tmp_path / "zarr.json").write_text('{"attributes": {}, "zarr_format": 3}')
    with pytest.raises(CacheNotFound, match="no activation cache"):
        Cache.open(tmp_path)


def test_an_incomplete_cache_is_refused_unless_asked_for(tmp_path):
    with SAMPLE.writer(tmp_path / "c") as writer:
        SAMPLE.fill(writer, 1)
        with pytest.raises(CacheIncomplete, match="pending"):
            writer.finish()
        inside, outside = writer.samples_of(1), writer.samples_of(0)
    with pytest.raises(CacheIncomplete, match="resume"):
        Cache.open(tmp_path / "c")
    cache = Cache.open(tmp_path / "c", allow_incomplete=True)
    assert cache.finished == {1}
    values = cache.read(inside)
    assert torch.equal(values["tokens.layer.2"].float(), SAMPLE.values(SAMPLE.taps[2], inside))
    with pytest.raises(CacheIncomplete, match="shard 0"):
        cache.read(outside)


def test_a_second_writer_is_refused(tmp_path):
    with SAMPLE.writer(tmp_path / "c"), pytest.raises(CacheLocked, match="another process"):
        SAMPLE.writer(tmp_path / "c")
    SAMPLE.writer(tmp_path / "c").close()


def test_a_closed_writer_says_so(tmp_path):
    writer = SAMPLE.writer(tmp_path / "c")
    writer.close()
    with pytest.raises(CacheError, match="closed"), writer.shard(0):
        pass


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (Sample(fingerprint={"weights": {"digest": "cd34"}}), 'weights.digest: cached "ab12", now'),
        (Sample(dtype="float32"), 'dtype: cached "float16", now "float32"'),
        (Sample(taps=token_taps(2)), "taps.2"),
        (Sample(seed=4), "seed: cached 3, now 4"),
        (Sample(lengths=(1, 2)), "n_samples: cached 12, now 2"),
    ],
)
def test_another_cache_is_not_overwritten(path, other, word):
    good = contents(path)
    with pytest.raises(FingerprintMismatch, match=word):
        other.writer(path)
    assert contents(path) == good


def test_other_inputs_of_the_same_shape_are_noticed(path):
    with pytest.raises(FingerprintMismatch, match=r"index_crc32c\.keys"):
        CacheWriter.create(path, keys=SAMPLE.keys[::-1], **SAMPLE.plan_kwargs)


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(CacheError, match=r"thesis\.tex"):
        SAMPLE.writer(tmp_path)
    with pytest.raises(CacheError, match="is a file"):
        SAMPLE.writer(tmp_path / "thesis.tex")
    assert contents(tmp_path) == {"thesis.tex": b"precious"}


@pytest.mark.parametrize(
    ("dtype", "value", "word"),
    [
        ("float16", 7e4, "70000 overflows float16.*bfloat16 or float32"),
        ("float16", float("nan"), "the network itself gave NaN"),
        ("float32", float("-inf"), "the network itself gave NaN or infinity"),
        ("bfloat16", 3.4e38, "overflows bfloat16"),
    ],
)
@pytest.mark.parametrize("kind", ["tokens", "map"])
def test_overflow_names_tap_and_row(tmp_path, dtype, value, word, kind):
    shape = (4,) if kind == "tokens" else (2, 2, 1)
    sample = Sample(dtype=dtype, taps=[TapSpec(name="tap.7", kind=kind, shape=shape)])
    with sample.writer(tmp_path / "c") as writer:
        samples = writer.samples_of(0)
        values = sample.values(sample.taps[0], samples)
        lengths = sample.axis_lengths("tokens")[samples] if kind == "tokens" else np.ones(3, int)
        values[int(lengths[:1].sum())].view(-1)[1] = value  # first row of the second sample
        row = int(np.flatnonzero(np.arange(sample.n)[::-1] == samples[1])[0])
        message = rf"tap tap\.7, row 'train/{row} · Zürich 例'.*{word}"
        with pytest.raises(ActivationOverflow, match=message), writer.shard(0) as buffer:
            buffer.put(samples, {"tap.7": values})
        assert writer.pending[0] == 0
    assert not list((tmp_path / "c").glob("activations/*/c/0/*"))


def test_misfitting_values_are_refused(tmp_path):
    tap = SAMPLE.taps[0]
    with SAMPLE.writer(tmp_path / "c") as writer:
        samples = writer.samples_of(0)
        good = SAMPLE.values(tap, samples)
        with pytest.raises(ShardMisaligned, match="expected"), writer.shard(0) as buffer:
            buffer.put(samples, {tap.name: good[:-1]})
        with pytest.raises(ShardMisaligned, match="elsewhere"), writer.shard(0) as buffer:
            buffer.put(writer.samples_of(1), {tap.name: good})
        with pytest.raises(ShardMisaligned, match="elsewhere"), writer.shard(0) as buffer:
            buffer.put(np.array([-1]), {tap.name: good})
        with pytest.raises(InvalidTap, match="nope"), writer.shard(0) as buffer:
            buffer.put(samples, {"nope": good})
        lacks = pytest.raises(ShardMisaligned, match=r"lacks .*tokens\.layer\.1")
        with lacks, writer.shard(0) as buffer:
            buffer.put(samples, {tap.name: good})
        with pytest.raises(ShardMisaligned, match="no shard 99"), writer.shard(99):
            pass
        assert 0 in writer.pending


def test_a_read_only_cache_can_be_read(path):
    for file in path.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    try:
        assert verify(path).ok
    finally:
        for file in path.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)


def test_shards_of_another_cache_do_not_pass(path, tmp_path):
    other = Sample(fingerprint={"weights": {"digest": "zzzz"}}).write(tmp_path / "other")
    shutil.copy(other / "ledger.jsonl", path / "ledger.jsonl")
    with pytest.raises(CacheDamaged, match=r"ledger\.jsonl"):
        Cache.open(path)
    (path / "COMPLETE.json").unlink()
    with pytest.raises(CacheDamaged, match="belongs to another cache"):
        Cache.open(path, allow_incomplete=True)
