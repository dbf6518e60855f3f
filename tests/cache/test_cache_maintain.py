import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cachekit import Sample, contents, frame_taps, token_taps

from cache import (
    ActivationOverflow,
    Cache,
    CacheConflict,
    CacheError,
    CacheFull,
    CacheWriter,
    Fingerprint,
    FingerprintMismatch,
    InvalidTap,
    TapSpec,
    convert,
    merge,
    verify,
)
from cache.format.fingerprint import table_digest

LENGTHS = np.random.default_rng(4).integers(1, 12, 60).tolist()
VECTOR = TapSpec(name="pooled", kind="vector", shape=(5,))
KINDS = {
    "tokens": token_taps(),
    "frames": frame_taps(),
    "mixed": [*token_taps(2), VECTOR],
    "fixed": [VECTOR, TapSpec(name="map", kind="map", shape=(2, 2, 3))],
}


class Part(Sample):
    """Some of the inputs of a larger table, under its numbers; rows in order, one a sample."""

    def __init__(self, numbers, **settings):
        super().__init__(lengths=[LENGTHS[i] for i in numbers], **settings)
        self.numbers = list(numbers)

    @property
    def keys(self):
        return Sample(lengths=LENGTHS).keys[self.numbers]

    def axis_lengths(self, axis):
        return np.array(self.lengths, np.int64)

    def values(self, tap, samples):
        known = Part(range(len(LENGTHS)), taps=self.taps)
        return Sample.values(known, tap, [self.numbers[i] for i in samples])

    @property
    def plan_kwargs(self):
        rows = {"row_to_sample": np.arange(self.n), "row_ids": [f"row/{i}" for i in self.numbers]}
        digest = table_digest(self.keys, rows["row_to_sample"], rows["row_ids"])
        inputs = {"rows": self.n, "unique": self.n, "sha256": digest}
        taps = {tap.name: {"module": "m"} for tap in self.taps}
        dtype = {"stored": self.dtype, "computed": "float32"}
        made = Fingerprint(self.fingerprint | {"inputs": inputs, "taps": taps, "dtype": dtype})
        return super().plan_kwargs | rows | {"fingerprint": made}


def check(path, part):
    """The cache holds exactly the numbers of `part`, found by their keys."""
    cache = Cache.open(path)
    assert (cache.n_samples, cache.n_rows) == (part.n, part.n)
    places = cache.find(part.keys)
    values = cache.read(places)
    for tap in part.taps:
        assert torch.equal(values[tap.name].float(), part.values(tap, range(part.n)))
    assert verify(path).ok
    return cache


@pytest.mark.parametrize("kind", KINDS)
def test_merged_caches_hold_what_one_extraction_holds(tmp_path, kind):
    ranges = (range(20), range(10, 45), range(45, 60))
    parts = [Part(numbers, taps=KINDS[kind]) for numbers in ranges]
    paths = [part.write(tmp_path / str(i)) for i, part in enumerate(parts)]
    before = [contents(path) for path in paths]
    report = merge(paths, tmp_path / "all", seed=5)
    assert (report.samples_known, report.rows_known) == (10, 10)
    json.dumps(report.to_dict())
    assert "already there: 10 samples" in report.render()
    whole = Part(range(60), taps=KINDS[kind])
    cache = check(tmp_path / "all", whole)
    assert cache.row_ids == tuple(whole.plan_kwargs["row_ids"])
    assert cache.fingerprint == whole.plan_kwargs["fingerprint"]
    assert sum(map(len, contents(tmp_path / "all").values())) == report.nbytes
    assert [contents(path) for path in paths] == before
    assert merge(paths, tmp_path / "all", seed=5).shards_written == 0


def test_a_merged_cache_is_shuffled(tmp_path):
    parts = [Part(range(30)), Part(range(30, 60))]
    paths = [part.write(tmp_path / str(i)) for i, part in enumerate(parts)]
    merge(paths, tmp_path / "all")
    cache = Cache.open(tmp_path / "all")
    order = np.lexsort((cache.table.slot, cache.table.block))
    assert 8 <= (order[:30] < 30).sum() <= 22
    for number, path in enumerate(paths):
        table = Cache.open(path).table
        mine = order[order // 30 == number] % 30
        assert np.array_equal(mine, np.lexsort((table.slot, table.block)))  # read front to back


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [10, 7])
def test_exported_taps_are_the_cache_that_an_extraction_of_them_gives(tmp_path, kind, size):
    taps = KINDS[kind]
    settings = {"block_tokens": size if kind in ("tokens", "mixed") else 640}
    settings |= {"blocks_per_shard": 2 if kind == "tokens" else None}
    Part(range(60), taps=taps, **settings).write(tmp_path / "all")
    names = [taps[1].name, taps[0].name]
    report = convert(tmp_path / "all", tmp_path / "some", taps=names)
    chosen = [tap for tap in taps if tap.name in names]
    assert report.taps == tuple(tap.name for tap in chosen)
    some = SomeTaps(range(60), taps=chosen, **settings)
    some.all_taps = taps
    assert contents(tmp_path / "some") == contents(some.write(tmp_path / "direct"))


class SomeTaps(Part):
    """A part with few taps, whose numbers are those they have among all taps."""

    all_taps: list[TapSpec]

    def values(self, tap, samples):
        known = Part(range(len(LENGTHS)), taps=self.all_taps)
        return Sample.values(known, tap, samples)


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_a_float32_cache_converts_to_what_an_extraction_gives(tmp_path, target):
    Part(range(60), dtype="float32").write(tmp_path / "all")
    convert(tmp_path / "all", tmp_path / "half", dtype=target)
    direct = Part(range(60), dtype=target).write(tmp_path / "direct")
    assert contents(tmp_path / "half") == contents(direct)


def test_rounded_numbers_stay_known_as_such(tmp_path):
    Part(range(60), dtype="bfloat16").write(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", dtype="float32")
    check(tmp_path / "b", Part(range(60), dtype="float32"))
    dtype = Cache.open(tmp_path / "b").fingerprint.mapping["dtype"]
    assert dtype == {"stored": "float32", "computed": "float32", "rounding_history": ["bfloat16"]}
    direct = Part(range(60), dtype="float32")
    with pytest.raises(FingerprintMismatch, match="rounding_history"):
        direct.writer(tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c", dtype="float16")
    dtype = Cache.open(tmp_path / "c").fingerprint.mapping["dtype"]
    assert dtype["rounding_history"] == ["bfloat16"]


def test_layouts_convert(tmp_path):
    Part(range(60)).write(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", block_tokens=25, blocks_per_shard=3)
    cache = check(tmp_path / "b", Part(range(60)))
    assert cache.geometry.block_tokens == {"tokens": 25}
    assert cache.geometry.blocks_per_shard == 3
    direct = Part(range(60), block_tokens=25, blocks_per_shard=3).write(tmp_path / "direct")
    assert contents(tmp_path / "b") == contents(direct)


def test_an_overflow_names_tap_and_row(tmp_path):
    part = Part(range(20), dtype="float32")
    with CacheWriter.create(tmp_path / "a", keys=part.keys, **part.plan_kwargs) as writer:
        for shard in writer.pending:
            with writer.shard(shard) as buffer:
                samples = writer.samples_of(shard)
                for tap in part.taps:
                    values = part.values(tap, samples)
                    if 7 in samples and tap.name == "tokens.layer.1":
                        before = samples[: samples.tolist().index(7)]
                        values[int(part.axis_lengths("tokens")[before].sum()), 2] = 1e5
                    buffer.put(samples, {tap.name: values})
        writer.finish()
    with pytest.raises(ActivationOverflow, match=r"tokens\.layer\.1, row 'row/7'.*float16"):
        convert(tmp_path / "a", tmp_path / "b", dtype="float16")
    assert convert(tmp_path / "a", tmp_path / "c", dtype="bfloat16").shards_written > 1


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (Part(range(40, 60), taps=token_taps(2)), "stored taps"),
        (Part(range(40, 60), dtype="float32"), "stored type"),
        (Part(range(40, 60), fingerprint={"weights": {"digest": "zz"}}), "weights.digest"),
    ],
)
def test_caches_of_different_kinds_are_not_joined(tmp_path, other, word):
    Part(range(40)).write(tmp_path / "a")
    other.write(tmp_path / "b")
    with pytest.raises(FingerprintMismatch, match=word):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_contradictions_are_refused(tmp_path):
    part = Part(range(20))
    part.write(tmp_path / "a")
    ids = {"row_ids": [f"row/{i + 1}" for i in range(20)]}
    other = Part(range(10, 30))
    other.write(tmp_path / "b", **ids)
    with pytest.raises(CacheConflict, match="row id 'row/1' stands for"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    longer = Part(range(20))
    longer.lengths = [n + 1 for n in longer.lengths]
    longer.values = lambda tap, samples: Sample.values(longer, tap, samples)
    longer.write(tmp_path / "d", row_ids=[f"other/{i}" for i in range(20)])
    with pytest.raises(CacheConflict, match="different numbers of tokens"):
        merge([tmp_path / "a", tmp_path / "d"], tmp_path / "c")
    with pytest.raises(InvalidTap, match=r"nope.*tokens\.layer\.0"):
        convert(tmp_path / "a", tmp_path / "c", taps=["nope"])
    for bad in (tmp_path / "a", tmp_path / "a" / "inside"):
        with pytest.raises(CacheError, match="source"):
            convert(tmp_path / "a", bad, dtype="float32")
    with pytest.raises(ValueError, match="different caches"):
        merge([tmp_path / "a", tmp_path / "a"], tmp_path / "c")
    with pytest.raises(FingerprintMismatch, match="holds another cache"):
        convert(tmp_path / "a", other.write(tmp_path / "e"), dtype="float32")
    assert verify(tmp_path / "a").ok


def test_too_small_a_disk_is_told_before_the_first_shard(tmp_path, monkeypatch):
    Part(range(60)).write(tmp_path / "a")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(CacheFull, match="are to be written, the disk has"):
        convert(tmp_path / "a", tmp_path / "b", dtype="float32")
    monkeypatch.undo()
    convert(tmp_path / "a", tmp_path / "b", dtype="float32")
    check(tmp_path / "b", Part(range(60), dtype="float32"))


def test_nothing_and_little_can_be_joined(tmp_path):
    paths = [Part(numbers).write(tmp_path / str(len(numbers))) for numbers in ([], [0])]
    assert merge(paths, tmp_path / "a").samples == 1
    assert merge(paths[:1], tmp_path / "c").samples == 0
    assert convert(paths[0], tmp_path / "d", taps=["tokens.layer.0"]).shards == 0
    check(tmp_path / "a", Part([0]))


def test_views_are_joined(tmp_path):
    rows = np.array([[0, 1], [2, 2]])
    first = replace(Sample(), fingerprint={})
    for name in "ab":
        first.write(tmp_path / name, row_to_sample=rows, row_ids=[f"{name}0", f"{name}1"])
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert report.samples_known == 12
    cache = Cache.open(tmp_path / "c")
    assert cache.row_to_sample.tolist() == [[0, 1], [2, 2]] * 2
    first.write(tmp_path / "d", row_to_sample=rows[:, 0], row_ids=["x", "y"])
    with pytest.raises(FingerprintMismatch, match="views"):
        merge([tmp_path / "a", tmp_path / "d"], tmp_path / "e")


def close(path, part):
    """The cache holds the numbers of `part` within what int8 keeps of them."""
    cache = Cache.open(path)
    values = cache.read(cache.find(part.keys))
    for tap in part.taps:
        wanted = part.values(tap, range(part.n))
        assert (values[tap.name] - wanted).abs().max() < 0.03 * wanted.abs().max()
    assert verify(path).ok
    return cache


@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_made_joined_and_left(tmp_path, kind):
    first, second = (Part(n, taps=KINDS[kind]) for n in (range(40), range(40, 60)))
    for name, part in (("a", first), ("b", second)):
        part.write(tmp_path / name)
        report = convert(tmp_path / name, tmp_path / f"{name}8", dtype="int8")
        assert report.dtype == "int8"
        cache = close(tmp_path / f"{name}8", part)
        assert cache.fingerprint.mapping["dtype"]["rounding_history"] == ["float16"]
    whole = Part(range(60), taps=KINDS[kind])
    merge([tmp_path / "a8", tmp_path / "b8"], tmp_path / "m")
    cache = close(tmp_path / "m", whole)
    assert cache.fingerprint.mapping["dtype"]["rounding_history"] == ["float16", "int8"]
    old = Cache.open(tmp_path / "a8").read(np.arange(40))
    for tap, values in cache.read(np.arange(40)).items():
        assert torch.equal(values, old[tap])  # rounded once, with the factors of the first
    convert(tmp_path / "m", tmp_path / "f", dtype="float32")
    dtype = close(tmp_path / "f", whole).fingerprint.mapping["dtype"]
    assert dtype["rounding_history"] == ["float16", "int8"]
    taps = [KINDS[kind][0].name]
    convert(tmp_path / "a8", tmp_path / "some", taps=taps)
    some = Cache.open(tmp_path / "some").read(np.arange(40))
    assert torch.equal(some[taps[0]], Cache.open(tmp_path / "a8").read(np.arange(40))[taps[0]])
