"""int8: accurate to half a step, calibrated once, exact in bytes, readable by anyone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from cachekit import Sample, contents, frame_taps, token_taps
from hypothesis import given, settings
from hypothesis import strategies as st
from onesource import OneSource

from cache import (
    ActivationOverflow,
    Cache,
    CacheDamaged,
    Calibration,
    FingerprintMismatch,
    Loader,
    Source,
    TapSpec,
    calibration_samples,
    convert,
    merge,
    verify,
)
from cache.format.quantize import MIN_SCALE, channel_axis, dequantize, quantize, requantized

FIXED = [
    TapSpec(name="map", kind="map", shape=(3, 4, 2)),
    TapSpec(name="grid", kind="grid", shape=(5, 4)),
    TapSpec(name="grid.last", kind="grid", shape=(5, 4)),
    TapSpec(name="vector", kind="vector", shape=(6,)),
]
KINDS: dict[str, Any] = {
    "tokens": token_taps(),
    "frames": frame_taps(),
    "fixed": FIXED,
    "tokens and a vector": [*token_taps(2), TapSpec(name="end", kind="vector", shape=(3,))],
}


class Real(Sample):
    """States with channels of very different sizes, one of them dead."""

    def values(self, tap: TapSpec, samples: Any) -> torch.Tensor:
        parts = []
        channel = 0 if len(tap.shape) == 3 else len(tap.shape) - 1
        size = torch.logspace(-1, 2, tap.shape[channel])
        size[1] = 0.0
        size = size.view([-1 if i == channel else 1 for i in range(len(tap.shape))])
        for sample in samples:
            rows = int(self.axis_lengths(tap.axis)[sample]) if tap.ragged else 1
            seed = torch.Generator().manual_seed(1000 * self.taps.index(tap) + int(sample))
            parts.append(torch.randn(rows, *tap.shape, generator=seed) * size)
        return torch.cat(parts) if parts else torch.empty(0, *tap.shape)

    def rms(self) -> dict[str, torch.Tensor]:
        found = Calibration()
        samples = calibration_samples(self.layout())
        found.add({tap.name: self.values(tap, samples) for tap in self.taps})
        return found.rms()


def real(kind: str = "tokens", **changes: Any) -> Real:
    return Real(taps=KINDS[kind], dtype="int8", **changes)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.sampled_from([(4,), (3, 4), (4, 2, 3)]),
    magnitude=st.integers(-30, 30),
    rows=st.integers(0, 4),
    half=st.booleans(),
    dead=st.booleans(),
)
def test_numbers_are_within_half_a_step_and_stay_where_they_are(
    shape: tuple[int, ...], magnitude: int, rows: int, half: bool, dead: bool
) -> None:
    states = torch.randn(rows, *shape) * 2.0 ** (min(magnitude, 12) if half else magnitude)
    states = states.half().float() if half else states
    axis = channel_axis(states)
    if dead:
        states.select(axis, 0).zero_()
    calibration = Calibration()
    calibration.add({"a": states})
    rms = calibration.rms()["a"]
    assert (rms > 0).all()
    codes, scales = quantize(states, rms)
    found = dequantize(codes, scales, rms)
    assert torch.isfinite(found).all()
    assert torch.equal(found, requantized(states, rms))
    step = scales.float().unsqueeze(axis) * (rms.view(-1, 1, 1) if states.dim() == 4 else rms)
    assert ((found - states).abs() <= step * 0.5 + step * 127 * 2.0**-10).all()
    again, kept = quantize(found, rms)
    assert torch.equal(again, codes)
    assert torch.equal(kept, scales)


def test_dead_channels_and_tokens_of_zeros_are_no_division_by_zero() -> None:
    calibration = Calibration()
    calibration.add({"dead": torch.zeros(5, 3), "nothing": torch.empty(0, 2)})
    rms = calibration.rms()
    assert rms["dead"].tolist() == [1, 1, 1]
    assert torch.isfinite(rms["nothing"]).all()
    codes, scales = quantize(torch.zeros(2, 3), rms["dead"])
    assert not codes.any()
    assert scales.tolist() == [MIN_SCALE] * 2
    calibration.add({"dead": torch.tensor([[8.0, 4.0, 0.0]] * 5)})
    floored = calibration.rms()["dead"]
    assert 0 < floored[2] < floored[1] < floored[0]


def test_the_error_on_channels_of_very_different_sizes_is_below_a_percent() -> None:
    states = torch.randn(400, 384) * torch.logspace(-1, 2, 384)
    calibration = Calibration()
    calibration.add({"a": states[:100]})
    rms = calibration.rms()["a"]
    relative = lambda found: ((found - states) / rms).norm() / (states / rms).norm()  # noqa: E731
    assert relative(requantized(states, rms)) < 0.01
    assert relative(requantized(states, torch.ones(384))) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_stored_to_the_byte_and_read_everywhere(kind: str, tmp_path: Path) -> None:
    sample = real(kind)
    rms = sample.rms()
    path = sample.write(tmp_path / "c", rms=rms)
    assert sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) == (
        sample.layout().total_bytes
    )
    assert verify(path).ok
    cache = Cache.open(path)
    assert cache.dtype == torch.float32
    order = np.random.default_rng(0).permutation(sample.n)
    found, group = cache.read(order), zarr.open_group(path, mode="r")
    for tap in sample.taps:
        wanted = requantized(sample.values(tap, order), rms[tap.name])
        assert torch.equal(found[tap.name], wanted)
        stack, (number,) = cache.stack_of([tap.name])
        codes = group[f"activations/{stack.name}"]
        scales, sizes = group[codes.attrs["scales"]], group[codes.attrs["rms"]]
        axis = codes.attrs["channel_axis"]
        around = [None] * (codes.ndim - 1 - axis)
        numbers = (
            codes[:].astype("f4")
            * np.expand_dims(scales[:].astype("f4"), axis)
            * np.expand_dims(sizes[:], (0, *range(2, axis)))[(..., *[slice(None)], *around)]
        )
        blocks, rows = cache.places(stack, order)
        np.testing.assert_array_equal(numbers[blocks, number, rows], wanted.numpy())


def test_an_interrupted_cache_keeps_its_calibration(tmp_path: Path) -> None:
    sample = real(lengths=tuple(range(1, 31)))
    rms = sample.rms()
    whole = contents(sample.write(tmp_path / "whole", rms=rms))
    other = {name: value * 1.5 for name, value in rms.items()}
    with sample.writer(tmp_path / "c", rms=rms) as writer:
        sample.fill(writer, writer.pending[1])
    for later in (None, other):
        with sample.writer(tmp_path / "c", rms=later) as writer:
            assert torch.equal(writer.layout.rms["tokens.layer.0"], rms["tokens.layer.0"])
            sample.fill(writer, writer.pending[0])
    sample.write(tmp_path / "c")
    assert contents(tmp_path / "c") == whole


def test_int8_is_not_begun_without_a_calibration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size of each channel before the first shard"):
        real().writer(tmp_path / "c")
    assert not (tmp_path / "c" / "zarr.json").exists()
    sample = Sample()
    sample.write(tmp_path / "half")
    with pytest.raises(FingerprintMismatch, match="dtype"):
        real().writer(tmp_path / "half")


def test_a_damaged_calibration_is_noticed_and_not_replaced(tmp_path: Path) -> None:
    sample = real()
    path = sample.write(tmp_path / "c", rms=sample.rms())
    file = path / "index" / "rms_tokens-4" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheDamaged, match="fails its checksum"):
        Cache.open(path)
    with pytest.raises(CacheDamaged, match="holds a measurement"):
        sample.writer(path, rms=sample.rms())


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or infinity"), (1e30, "overflows")])
def test_a_state_that_does_not_fit_is_named(tmp_path: Path, value: float, message: str) -> None:
    sample = real("fixed")
    with sample.writer(tmp_path / "c", rms=sample.rms()) as writer:
        samples = writer.samples_of(0)
        states = sample.values(sample.taps[0], samples)
        states[1, 2, 0, 1] = value
        row = sample.n - 1 - int(samples[1])  # rows are in reverse
        with (
            pytest.raises(ActivationOverflow, match=rf"tap map, row 'train/{row} .*{message}"),
            writer.shard(0) as buffer,
        ):
            buffer.put(samples, {"map": states})


def test_batches_are_the_cache_s_numbers_on_any_device_and_tier(tmp_path: Path) -> None:
    sample = real("tokens and a vector")
    cache = Cache.open(sample.write(tmp_path / "c", rms=sample.rms()))
    for tier in ("host", "disk"):
        for device in (None, torch.device("cpu")):
            source = Source(cache=cache, samples=np.arange(sample.n))
            loader = Loader({"a": source}, batch_size=5, seed=1, tier=tier, device=device)
            for batch in loader.epoch(0):
                wanted = cache.read(batch.index.numpy())
                for name, state in batch.parts["a"].states.items():
                    assert torch.equal(state, wanted[name])


def test_memory_holds_bytes(tmp_path: Path) -> None:
    wide = {"taps": token_taps(width=64)}
    sample, same = Real(dtype="int8", **wide), Real(dtype="float32", **wide)
    caches = [
        Cache.open(sample.write(tmp_path / "a", rms=sample.rms())),
        Cache.open(same.write(tmp_path / "b")),
    ]
    few, many = (cache.store([t.name for t in cache.taps], 4).nbytes for cache in caches)
    assert few == many * (64 + 2) // (64 * 4)
    for cache in caches:
        loader = OneSource(cache, np.arange(12), taps=None, batch_size=2, seed=0, tier="host")
        assert loader.memory_bytes > 0


def test_caches_become_int8_and_stay_what_they_are(tmp_path: Path) -> None:
    sample = real()
    plain = Real(taps=sample.taps, dtype="float32").write(tmp_path / "float32")
    direct = Cache.open(sample.write(tmp_path / "direct", rms=sample.rms()))
    convert(plain, tmp_path / "int8", dtype="int8")
    made = Cache.open(tmp_path / "int8")
    every = np.arange(sample.n)
    for name, state in direct.read(every).items():
        assert torch.equal(made.rms[name], direct.rms[name])
        assert torch.equal(made.read(every)[name], state)
    merge([tmp_path / "int8"], tmp_path / "again")
    for name, state in Cache.open(tmp_path / "again").read(every).items():
        assert torch.equal(state, made.read(every)[name])
