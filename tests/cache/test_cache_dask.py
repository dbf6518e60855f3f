"""Lazy arrays hold what the reader reads: each valid row once, no padding, checksums verified."""

import pickle
import re
import shutil
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import torch
from cachekit import LONG, Sample, frame_taps
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import Cache, CacheDamaged, FingerprintMismatch, InvalidTap, TapSpec

MIXED = [
    TapSpec(name="tokens", kind="tokens", shape=(4,)),
    TapSpec(name="vector", kind="vector", shape=(3,)),
    TapSpec(name="map", kind="map", shape=(2, 2, 3)),
]
SAMPLES = {
    "float16": LONG["tokens"],
    "float32": Sample(dtype="float32", taps=MIXED),
    "bfloat16": Sample(taps=frame_taps(), block_tokens={"frames": 5}, dtype="bfloat16"),
    "int8": Sample(dtype="int8"),
}


def write(sample: Sample, path):
    rms = {tap.name: torch.ones(tap.shape[-1]) for tap in sample.taps}
    return Cache.open(sample.write(path, **({"rms": rms} if sample.dtype == "int8" else {})))


@pytest.mark.parametrize("kind", SAMPLES)
def test_arrays_are_what_the_reader_reads(tmp_path, kind) -> None:
    cache = write(SAMPLES[kind], tmp_path / "c")
    arrays = cache.to_dask()
    assert list(arrays) == [tap.name for tap in cache.taps]
    order = cache.packed_order
    for tap in cache.taps:
        wanted = cache.read(order, [tap.name])[tap.name].float().numpy()
        found = arrays[tap.name]
        assert found.shape == wanted.shape
        assert found.dtype == ("float16" if kind == "float16" else "float32")
        assert np.array_equal(found.compute().astype("f4"), wanted)


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(0, 25), max_size=12), blocks=st.integers(1, 4))
def test_any_lengths(tmp_path_factory, lengths, blocks) -> None:
    sample = Sample(lengths=lengths, blocks_per_shard=blocks)
    cache = write(sample, tmp_path_factory.mktemp("c") / "c")
    found = cache.to_dask(["tokens.layer.2"])["tokens.layer.2"].compute()
    wanted = cache.read(cache.packed_order, ["tokens.layer.2"])["tokens.layer.2"].numpy()
    assert np.array_equal(found, wanted)


def test_a_mean_over_layers_reads_only_what_it_needs(tmp_path) -> None:
    sample = LONG["tokens"]
    cache = write(sample, tmp_path / "c")
    norms = {
        tap: da.sqrt((x.astype("f4") ** 2).sum(axis=-1)).mean()
        for tap, x in cache.to_dask().items()
    }
    (found,) = dask.compute(norms)
    for tap in sample.taps:
        wanted = sample.values(tap, range(sample.n)).norm(dim=-1).mean()
        assert found[tap.name] == pytest.approx(float(wanted), rel=1e-5)


def test_damage_is_noticed(tmp_path) -> None:
    array = write(LONG["tokens"], tmp_path / "c").to_dask(["tokens.layer.0"])["tokens.layer.0"]
    file = tmp_path / "c/activations/tokens-4/c/1/0/0/0"
    data = bytearray(file.read_bytes())
    data[5] ^= 4
    file.write_bytes(bytes(data))
    with pytest.raises(CacheDamaged, match="fails its checksum"):
        array.compute()


def test_a_cache_is_opened_again_where_it_is_unpickled(tmp_path) -> None:
    cache = write(LONG["tokens"], tmp_path / "c")
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    there = pickle.loads(sent)
    samples = np.array([4, 0])
    for tap, values in cache.read(samples).items():
        assert torch.equal(there.read(samples)[tap], values)
    assert pickle.loads(sent) is there
    other = write(Sample(fingerprint={"weights": "other"}), tmp_path / "other")
    again = pickle.dumps(other)
    shutil.rmtree(tmp_path / "other")
    write(Sample(), tmp_path / "other")
    with pytest.raises(FingerprintMismatch, match="replaced"):
        pickle.loads(again)


def test_unknown_taps_are_refused(tmp_path) -> None:
    cache = write(Sample(), tmp_path / "c")
    with pytest.raises(InvalidTap, match="it has"):
        cache.to_dask(["nothing"])


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, capsys) -> None:
    page = (Path(__file__).parents[2] / "docs/extraction.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    write(LONG["tokens"], tmp_path / "reviews.zarr")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "extraction.md", "exec"), {})  # the page's own code
    assert capsys.readouterr().out.startswith("tokens.layer.0 1")
