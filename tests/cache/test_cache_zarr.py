"""A cache in the hands of zarr-python: read, described, and written to where it may be."""

import warnings

import numpy as np
import pytest
import torch
import zarr
from cachekit import Sample, contents, frame_taps, token_taps

from cache import Cache, TapSpec, verify

VECTOR = TapSpec(name="pooled", kind="vector", shape=(5,))
KINDS = {
    "float16": (Sample(taps=[*token_taps(), VECTOR]), {}),
    "zstd": (Sample(taps=[*token_taps(), VECTOR]), {"compression": "zstd"}),
    "frames": (Sample(taps=frame_taps(), block_tokens={"frames": 5}, dtype="bfloat16"), {}),
    "int8": (
        Sample(dtype="int8"),
        {"rms": {tap.name: torch.ones(4) for tap in token_taps()}},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_our_reader_and_that_of_zarr_give_equal_arrays(tmp_path, kind):
    sample, extra = KINDS[kind]
    cache = Cache.open(sample.write(tmp_path / "cache", **extra))
    group = zarr.open_group(cache.path, mode="r")
    for stack in cache.geometry.stacks:
        wanted = group[f"activations/{stack.name}"][:]
        for block in range(cache.geometry.n_blocks):
            ours = np.empty((len(stack.taps), cache.geometry.chunk_bytes(stack)), np.uint8)
            cache.read_block(stack, block, range(len(stack.taps)), list(ours))
            assert np.array_equal(
                ours.view(wanted.dtype).reshape(wanted[block].shape), wanted[block]
            )


def test_zarr_finds_nothing_foreign_in_it(tmp_path):
    path = Sample().write(tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(path, mode="r")
        members = dict(group.members(max_depth=None))
    assert {"activations/tokens-4", "index/keys", "index/block"} <= members.keys()


def test_what_zarr_adds_makes_no_cache_unreadable(tmp_path):
    sample = Sample()
    path = sample.write(tmp_path / "cache")
    wanted = Cache.open(path).read(np.arange(sample.n))
    group = zarr.open_group(path, mode="r+")
    group.attrs["note"] = "mine"
    group["activations"].attrs["note"] = "mine"
    group["activations/tokens-4"].attrs["note"] = ["mine", {"too": 1}]
    group["index/keys"].attrs["note"] = "mine"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)
    after = contents(path)
    assert verify(path).ok
    assert verify(path, repair=True).ok
    with sample.writer(path) as writer:
        assert writer.pending == ()
        writer.finish()
    assert contents(path) == after
    for name, values in Cache.open(path).read(np.arange(sample.n)).items():
        assert torch.equal(values, wanted[name])
    assert zarr.open_group(path, mode="r").attrs["note"] == "mine"


def test_what_zarr_changes_of_ours_is_restored(tmp_path):
    path = Sample().write(tmp_path / "cache")
    good = contents(path)
    zarr.open_group(path, mode="r+")["activations/tokens-4"].attrs["taps"] = ["other"]
    report = verify(path)
    assert any("was altered" in problem for problem in report.problems)
    assert verify(path, repair=True).complete
    assert contents(path) == good


def test_an_index_of_zeros_is_stored(tmp_path):
    """Zarr leaves chunks of zeros out unless told: a missing file would read as zeros too."""
    path = Sample(lengths=(3,)).write(tmp_path / "cache")
    assert (path / "index/slot/c/0").stat().st_size == 8 + 4
