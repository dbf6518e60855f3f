"""A storage type for each tap: the same numbers as in a cache of that type, whatever the mix."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from cachekit import Counted, Sample, contents, frame_taps, token_taps
from hypothesis import given, settings
from hypothesis import strategies as st
from onesource import OneSource

from benchmarks import fuzz
from cache import (
    ActivationOverflow,
    Cache,
    CacheDamaged,
    CacheWriter,
    Calibration,
    Fingerprint,
    FingerprintMismatch,
    InvalidTap,
    Loader,
    Source,
    TapSpec,
    calibration_samples,
    convert,
    info,
    merge,
    verify,
)
from cache.format.quantize import requantized
from cache.format.spec import TORCH_TYPES

TYPES = sorted(TORCH_TYPES)  # bfloat16, float16, float32, int8
FIXED = [
    TapSpec(name="map", kind="map", shape=(3, 4, 2)),
    TapSpec(name="map.last", kind="map", shape=(3, 4, 2)),
    TapSpec(name="vector", kind="vector", shape=(6,)),
]
KINDS: dict[str, list[TapSpec]] = {
    "tokens": token_taps(4),
    "frames": frame_taps(),
    "fixed": FIXED,
    "both": [*token_taps(2), *FIXED],
}
LENGTHS = (3, 1, 7, 2, 9, 4, 4, 5, 1, 6, 2, 8, 13, 1, 2)


def mixed(kind: str, types: dict[str, str] | str, **changes: Any) -> Sample:
    """A cache whose fingerprint says what an extraction's does."""
    taps = changes.pop("taps", KINDS[kind])
    stored = types
    if isinstance(types, dict):
        one = set(types.values())
        stored = one.pop() if len(one) == 1 else {tap.name: types[tap.name] for tap in taps}
    fingerprint = {
        "taps": {tap.name: {"module": "m"} for tap in taps},
        "dtype": {"stored": stored, "computed": "float32"},
    }
    return Sample(lengths=LENGTHS, taps=taps, dtype=types, fingerprint=fingerprint, **changes)


def alternating(kind: str, *types: str) -> dict[str, str]:
    return {tap.name: types[i % len(types)] for i, tap in enumerate(KINDS[kind])}


def rms_of(sample: Sample) -> dict[str, torch.Tensor]:
    found, layout = Calibration(), sample.layout()
    coded = [tap for stack in layout.geometry.quantized_stacks for tap in stack.taps]
    samples = calibration_samples(layout)
    found.add({tap.name: sample.values(tap, samples) for tap in coded})
    return found.rms()


def wanted(sample: Sample, cache: Cache, tap: TapSpec, samples: Any) -> torch.Tensor:
    """What a cache holds of numbers that are exact in every type but int8."""
    values = sample.values(tap, samples)
    return requantized(values, cache.rms[tap.name]) if tap.name in cache.rms else values


@st.composite
def mixes(draw: Any) -> Sample:
    kind = draw(st.sampled_from(sorted(KINDS)))
    types = {tap.name: draw(st.sampled_from(TYPES)) for tap in KINDS[kind]}
    axis = "frames" if kind == "frames" else "tokens"
    size: Any = {axis: draw(st.integers(3, 12))}
    return mixed(
        kind,
        types,
        block_tokens=12 if kind == "fixed" else size,
        blocks_per_shard=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 3)),
    )


@settings(deadline=None, max_examples=25)
@given(mixes(), st.lists(st.integers(0, len(LENGTHS) - 1), max_size=9))
def test_any_mix_is_planned_to_the_byte_and_read_everywhere(sample: Sample, asked: Any) -> None:
    with TemporaryDirectory() as folder:
        path = sample.write(Path(folder) / "c", rms=rms_of(sample))
        assert sum(map(len, contents(path).values())) == sample.layout().total_bytes
        cache = Cache.open(path)
        assert sum(cache.geometry.tap_bytes().values()) < sample.layout().total_bytes
        found = cache.read(np.array(asked, np.int64))
        group = zarr.open_group(path, mode="r")
        for tap in sample.taps:
            dtype = cache.geometry.types[tap.name]
            assert dtype == sample.dtype[tap.name]
            assert found[tap.name].dtype == TORCH_TYPES[dtype]
            assert torch.equal(found[tap.name].float(), wanted(sample, cache, tap, asked))
            stack, (number,) = cache.stack_of([tap.name])
            attributes = dict(group[f"activations/{stack.name}"].attrs)
            assert attributes["logical_dtype"] == dtype
            assert attributes["taps"][number] == tap.name
        assert verify(path).ok


@settings(deadline=None, max_examples=25)
@given(mixes(), st.data())
def test_batches_are_those_of_single_types_in_float32(sample: Sample, data: Any) -> None:
    tier = data.draw(st.sampled_from(["host", "disk"]))
    names = data.draw(st.permutations([tap.name for tap in sample.taps]))
    taps = names[: data.draw(st.integers(1, len(names)))]
    with TemporaryDirectory() as folder:
        cache = Cache.open(sample.write(Path(folder) / "c", rms=rms_of(sample)))
        source = Source(cache=cache, samples=np.arange(sample.n), taps=taps)
        loader = Loader({"a": source}, batch_size=4, seed=1, tier=tier, threads=2)
        known = {tap.name: tap for tap in sample.taps}
        for batch in loader.epoch(0):
            part, samples = batch.parts["a"], batch.index.tolist()
            assert list(part.states) == taps
            assert len(part.stacks) == len(cache.shapes(taps))
            for tap, states in part.states.items():
                assert torch.equal(states.float(), wanted(sample, cache, known[tap], samples))
            for stack, values in zip(cache.shapes(taps), part.stacks, strict=True):
                types = {cache.geometry.types[tap] for tap in stack.tap_names}
                one = TORCH_TYPES[types.copy().pop()] if len(types) == 1 else torch.float32
                assert values.dtype == one
                for tap, each in zip(stack.tap_names, values, strict=True):
                    assert torch.equal(each, part.states[tap])


def test_a_batch_of_one_type_takes_no_detour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = alternating("tokens", "float16", "int8")
    sample = mixed("tokens", types)
    cache = Cache.open(sample.write(tmp_path / "c", rms=rms_of(sample)))

    def never(*_: Any) -> Any:
        raise AssertionError("copied once more")

    monkeypatch.setattr("cache.loading.sources.write_numbers", never)
    halves = [tap for tap, dtype in types.items() if dtype == "float16"]
    loader = OneSource(cache, np.arange(sample.n), taps=halves, batch_size=4, seed=0)
    assert {batch.values.dtype for batch in loader.epoch(0)} == {torch.float16}
    with pytest.raises(AssertionError, match="copied once more"):
        next(OneSource(cache, np.arange(sample.n), taps=None, batch_size=4, seed=0).epoch(0))


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_no_more_memory_than_stated(
    tier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = token_taps(4, width=512)
    sample = mixed("tokens", {t.name: TYPES[i] for i, t in enumerate(wide)}, taps=wide)
    cache = Cache.open(sample.write(tmp_path / "c", rms=rms_of(sample)))
    used = Counted(monkeypatch)
    loader = OneSource(cache, np.arange(sample.n), taps=None, batch_size=4, seed=0, tier=tier)
    for number in range(3):
        for batch in loader.epoch(number):
            assert used.now <= loader.memory_bytes
            del batch
    assert 0 < used.peak <= loader.memory_bytes


def test_one_type_for_every_tap_is_one_type(tmp_path: Path) -> None:
    one, each = mixed("both", "float16"), mixed("both", alternating("both", "float16"))
    assert contents(one.write(tmp_path / "a")) == contents(each.write(tmp_path / "b"))
    report = info(mixed("both", alternating("both", "float16", "float32")).write(tmp_path / "c"))
    assert report.dtype == "float16 (3 taps), float32 (2 taps)"
    assert "float16 (3 taps), float32 (2 taps)" in report.render()
    json.dumps(report.to_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_give_what_writing_gives(kind: str, tmp_path: Path) -> None:
    auto: Any = {"blocks_per_shard": None}  # as a conversion of fixed shapes chooses it
    source = mixed(kind, "float32", **auto)
    types = alternating(kind, "int8", "float16", "bfloat16")
    path = source.write(tmp_path / "float32")
    some = {tap: dtype for tap, dtype in types.items() if dtype != "bfloat16"}
    target = mixed(kind, dict.fromkeys(types, "float32") | some, **auto)
    report = convert(path, tmp_path / "mixed", dtype=some)  # type: ignore[arg-type]
    assert "int8" in report.dtype
    cache = Cache.open(tmp_path / "mixed")
    assert dict(cache.geometry.types) == target.dtype
    assert cache.fingerprint == Fingerprint(target.fingerprint)
    found = cache.read(np.arange(source.n))
    for tap in source.taps:
        assert torch.equal(found[tap.name].float(), wanted(source, cache, tap, range(source.n)))
    written = target.write(tmp_path / "written", rms=rms_of(target))
    assert contents(tmp_path / "mixed") == contents(written)
    with pytest.raises(InvalidTap, match=r"no taps \['nowhere'\]"):
        convert(path, tmp_path / "x", dtype={"nowhere": "int8"})


def test_taps_of_a_mix_are_those_of_a_narrower_one(tmp_path: Path) -> None:
    types = alternating("both", "int8", "float16", "float32")
    auto: Any = {"blocks_per_shard": None}
    sample = mixed("both", types, **auto)
    path = sample.write(tmp_path / "c", rms=rms_of(sample))
    for number, chosen in enumerate((KINDS["both"][:3], KINDS["both"][1:2])):
        names = [tap.name for tap in chosen]
        convert(path, tmp_path / f"some{number}", taps=names)
        narrow = mixed("both", {name: types[name] for name in names}, taps=chosen, **auto)
        narrow.values = sample.values  # type: ignore[method-assign]  # numbered as in the whole
        made = Cache.open(tmp_path / f"some{number}")
        assert made.fingerprint == Fingerprint(narrow.fingerprint)
        whole = Cache.open(path).read(np.arange(sample.n), names)
        for name, values in made.read(np.arange(sample.n)).items():
            assert torch.equal(values, whole[name])
        wide = narrow.write(tmp_path / f"wide{number}", rms=made.rms)
        assert contents(wide) == contents(tmp_path / f"some{number}")


def test_the_rounding_history_of_each_tap(tmp_path: Path) -> None:
    a, b, c, d = (tap.name for tap in KINDS["tokens"])
    sample = mixed("tokens", {a: "float16", b: "float32", c: "float32", d: "int8"})
    path = sample.write(tmp_path / "c", rms=rms_of(sample))
    convert(path, tmp_path / "back", dtype="float32")
    stored = Cache.open(tmp_path / "back").fingerprint.mapping["dtype"]
    assert stored["stored"] == "float32"
    assert stored["rounding_history"] == {a: ["float16"], d: ["int8"]}
    convert(tmp_path / "back", tmp_path / "a", taps=[a])
    assert Cache.open(tmp_path / "a").fingerprint.mapping["dtype"]["rounding_history"] == [
        "float16"
    ]
    convert(tmp_path / "back", tmp_path / "bc", taps=[b, c])
    assert "rounding_history" not in Cache.open(tmp_path / "bc").fingerprint.mapping["dtype"]


def test_joining_mixes(tmp_path: Path) -> None:
    types = alternating("tokens", "float16", "int8")
    sample = mixed("tokens", types)
    path, rms = sample.write(tmp_path / "c", rms=rms_of(sample)), rms_of(sample)
    uniform = mixed("tokens", "float16").write(tmp_path / "d")
    with pytest.raises(FingerprintMismatch, match="stored"):
        merge([path, uniform], tmp_path / "x")
    copy = mixed("tokens", types).write(tmp_path / "again", rms=rms)
    merge([path, copy], tmp_path / "merged")
    cache = Cache.open(tmp_path / "merged")
    assert dict(cache.geometry.types) == types
    values = cache.read(cache.find(sample.keys))
    for tap in sample.taps:
        assert torch.equal(values[tap.name].float(), wanted(sample, cache, tap, range(sample.n)))


def test_dask_gives_each_tap_in_its_type(tmp_path: Path) -> None:
    types = alternating("tokens", "float16", "int8", "bfloat16")
    sample = mixed("tokens", types)
    cache = Cache.open(sample.write(tmp_path / "c", rms=rms_of(sample)))
    for tap, array in cache.to_dask().items():
        assert array.dtype == ("float16" if types[tap] == "float16" else "float32")
        values = cache.read(cache.packed_order, [tap])[tap].float()
        assert torch.equal(torch.from_numpy(array.compute()).float(), values)


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    types = alternating("tokens", "float16", "int8")
    sample = mixed("tokens", types)
    with pytest.raises(ValueError, match="int8 needs the size of each channel"):
        sample.write(tmp_path / "a")
    with pytest.raises(ValueError, match=r"for the taps \['tokens.layer.1', 'tokens.layer.3'\]"):
        sample.write(tmp_path / "b", rms={"tokens.layer.1": torch.ones(4)})
    for wrong in ({"tokens.layer.0": "int8"}, types | {"other": "int8"}):
        with pytest.raises(ValueError, match="storage types are given for"):
            mixed("tokens", "float16").writer(tmp_path / "c", dtype=wrong)
    with pytest.raises(ValueError, match="storage type 'int4'"):
        mixed("tokens", "float16").writer(tmp_path / "c", dtype=types | {"tokens.layer.0": "int4"})
    with sample.writer(tmp_path / "d", rms=rms_of(sample)) as writer:
        values = {t.name: sample.values(t, writer.samples_of(0)) for t in sample.taps}
        values["tokens.layer.2"] = values["tokens.layer.2"] * 1e6
        message = r"tokens.layer.2.* overflows float16; store"
        with pytest.raises(ActivationOverflow, match=message), writer.shard(0) as buffer:
            buffer.put(writer.samples_of(0), values)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_flipped_byte_in_either_array_is_found(dtype: str, tmp_path: Path) -> None:
    types = alternating("tokens", "float16", "int8")
    sample = mixed("tokens", types)
    path = sample.write(tmp_path / "c", rms=rms_of(sample))
    geometry = Cache.open(path).geometry
    stack = next(each for each in geometry.value_stacks if each.dtype == dtype)
    assert stack.name == f"tokens-4-{dtype}"
    file = path / geometry.shard_path(stack, 0)
    raw = bytearray(file.read_bytes())
    raw[1] ^= 1
    file.write_bytes(raw)
    assert not verify(path).ok
    with pytest.raises(CacheDamaged, match=stack.name):
        Cache.open(path).read(np.arange(sample.n))


def test_a_mapping_that_says_what_a_name_says_is_no_manifest(tmp_path: Path) -> None:
    path = mixed("tokens", "float16").write(tmp_path / "c")
    root = json.loads((path / "zarr.json").read_text())
    for dtype in (dict.fromkeys(alternating("tokens", "x"), "float16"), {}, ["float16"], 7, None):
        root["attributes"]["unipt_cache"]["dtype"] = dtype
        (path / "zarr.json").write_text(json.dumps(root, indent=2))
        with pytest.raises(CacheDamaged):
            Cache.open(path)


def test_spoiled_records_of_a_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    types = dict(zip([tap.name for tap in fuzz.TAPS], TYPES, strict=False))
    monkeypatch.setattr(fuzz, "STORED", types | {"pooled": "float32"})
    counts, bad = fuzz.fuzz(tmp_path, 40, 5)
    assert bad == []
    assert counts["refused"] > 20


def test_a_begun_mix_goes_on_with_its_own_sizes_only(tmp_path: Path) -> None:
    types = alternating("tokens", "float16", "int8")
    sample = mixed("tokens", types)
    with sample.writer(tmp_path / "c", rms=rms_of(sample)) as writer:
        sample.fill(writer, 0)
    with sample.writer(tmp_path / "c") as writer:
        for shard in writer.pending:
            sample.fill(writer, shard)
        writer.finish()
    whole = sample.write(tmp_path / "whole", rms=rms_of(sample))
    assert contents(tmp_path / "c") == contents(whole)
    other = mixed("tokens", alternating("tokens", "int8", "float16"))
    with pytest.raises(FingerprintMismatch):
        CacheWriter.create(tmp_path / "c", keys=other.keys, **other.plan_kwargs)
