"""Taps of kind "frames", and how large blocks and shards become."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import zarr
from cachekit import Sample, contents, frame_taps, token_taps
from hypothesis import given, settings
from hypothesis import strategies as st
from onesource import OneSource
from zarr.core.metadata.v3 import ArrayV3Metadata

from cache import Cache, CacheLayout, Fingerprint, InvalidTap, TapSpec, plan_layout, verify
from cache.format.blocks import CHUNK_TARGET, SHARD_TARGET

MIB = 2**20
STAGES = [(256, 128, 128), (512, 64, 64), (1024, 32, 32), (2048, 16, 16)]
FRAME_SHAPES = st.sampled_from([(4,), (3, 2), (2, 2, 3), (1, 2, 1, 3)])


def layout(taps: list[TapSpec], lengths: dict[str, list[int]] | None, n: int) -> CacheLayout:
    return plan_layout(
        taps=taps,
        lengths={axis: np.array(values) for axis, values in (lengths or {}).items()},
        n_samples=n,
        row_to_sample=np.arange(n),
        row_ids=["r"] * n,
        dtype="float16",
        fingerprint=Fingerprint({}),
    )


def taps_of(kind: str, shapes: list[tuple[int, ...]], count: int = 1) -> list[TapSpec]:
    return [
        TapSpec(name=f"{kind}.{s}.{c}", kind=kind, shape=shape)
        for s, shape in enumerate(shapes)
        for c in range(count)
    ]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(FRAME_SHAPES, min_size=1, max_size=4),
    st.lists(st.integers(0, 30), max_size=20),
    st.booleans(),
    st.sampled_from([{}, {"frames": 1}, {"frames": 4}, {"frames": 11, "tokens": 6}]),
    st.sampled_from([None, 1, 3]),
    st.randoms(use_true_random=False),
)
def test_frames_of_any_shape_read_back_at_the_planned_size(
    shapes, lengths, text, rows, shard, random
):
    taps = taps_of("frames", shapes) + token_taps(2 if text else 0)
    sample = Sample(lengths=lengths, taps=taps, block_tokens=rows)
    extra = {"blocks_per_shard": shard}
    with TemporaryDirectory() as folder:
        path = sample.write(Path(folder) / "cache", **extra)
        planned = plan_layout(n_samples=sample.n, **(sample.plan_kwargs | extra))
        assert sum(map(len, contents(path).values())) == planned.total_bytes
        cache = Cache.open(path)
        asked = [random.randrange(sample.n) for _ in range(7)] if sample.n else []
        values = cache.read(np.array(asked, np.int64))
        for tap in taps:
            assert torch.equal(values[tap.name].float(), sample.values(tap, asked))
        assert verify(path).ok


def test_plain_zarr_reads_frames_by_what_the_page_says(tmp_path):
    sample = Sample(taps=frame_taps(), block_tokens={"frames": 3})
    path = sample.write(tmp_path / "cache")
    cache = Cache.open(path)
    stored = zarr.open(str(path), mode="r")
    index = stored["index"]
    block, start = index["block"][:], index["start_frames"][:]
    for name in ("frames-3x2", "frames-2x2x3", "frames-4"):
        array = stored["activations"][name]
        metadata = json.loads((path / "activations" / name / "zarr.json").read_text())
        assert metadata["dimension_names"][:3] == ["block", "tap", "frame"]
        again = json.loads(json.dumps(ArrayV3Metadata.from_dict(metadata).to_dict()))
        assert again == metadata
        for number, tap in enumerate(array.attrs["taps"]):
            flat = array[:, number].reshape(-1, *array.shape[3:])
            (spec,) = [t for t in sample.taps if t.name == tap]
            for i in range(cache.n_samples):
                first = block[i] * 3 + start[i]
                rows = flat[first : first + index["length_frames"][i]]
                assert np.array_equal(rows, sample.values(spec, [i]).numpy())


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_the_loader_gives_frames(tmp_path, tier):
    sample = Sample(taps=frame_taps(), block_tokens={"frames": 4})
    cache = Cache.open(sample.write(tmp_path / "cache"))
    names = ["clip.grid.last", "clip.grid"]
    loader = OneSource(cache, np.arange(sample.n), taps=names, batch_size=5, seed=1, tier=tier)
    for batch in loader.epoch(0):
        used = batch.index.tolist()
        wanted = [sample.values(sample.taps[i], used) for i in (2, 0)]
        assert torch.equal(batch.values.float(), torch.stack(wanted))
        assert batch.offsets.diff().tolist() == sample.axis_lengths("frames")[used].tolist()


def test_tokens_keep_their_blocks_and_shards():
    """640 tokens and 16 blocks, however wide: caches that exist stay what they are."""
    for width in (8, 768, 4096):
        taps = token_taps(25, width)
        geometry = layout(taps, {"tokens": [30] * 999}, 999).geometry
        assert geometry.block_tokens == {"tokens": 640}
        assert geometry.blocks_per_shard == 16


@pytest.mark.parametrize(
    ("shapes", "lengths", "rows"),
    [
        ([(50, 768)], [12] * 40, 12),  # CLIP ViT-B/32, 12 frames: a clip is a block
        ([(50, 768)], [12, 3, 7] * 40, 12),
        ([(512,)], [12] * 400, 1020),  # projected frames: 85 clips
        ([(512,)], [5], 5),  # no more than there is
        ([(50, 768)], [30] * 9, 10),  # longer than a chunk: equal parts
        (STAGES, [12] * 9, 1),  # 8 MiB a frame
        ([(50, 768)], [0, 0], 1),
    ],
)
def test_frames_of_a_block_follow_from_their_bytes(shapes, lengths, rows):
    planned = layout(taps_of("frames", shapes), {"frames": lengths}, len(lengths))
    assert planned.geometry.block_tokens == {"frames": rows}


def test_clips_of_equal_length_leave_no_rest():
    """Frames of 256 KiB, clips of 1 to 40 of them: blocks hold them without padding."""
    for count in range(1, 41):
        planned = layout(taps_of("frames", [(128, 1024)]), {"frames": [count] * 100}, 100)
        geometry = planned.geometry
        used = count * 100
        stored = geometry.n_blocks * geometry.block_tokens["frames"]
        parts = -(-count // 4)  # a clip longer than a chunk has at most parts - 1 rows too many
        assert used <= stored <= used + 100 * (parts - 1) + geometry.block_tokens["frames"]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["frames", "grid", "map"]),
    st.lists(
        st.tuples(st.integers(1, 2048), st.integers(1, 128), st.integers(1, 128)),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_no_shape_makes_a_gigantic_chunk_or_shard(kind, shapes, count, frames):
    taps = taps_of(kind, shapes, count)
    planned = layout(taps, {"frames": [frames] * 50} if kind == "frames" else None, 50)
    geometry = planned.geometry
    for stack in geometry.stacks:
        row = stack.width * stack.itemsize
        assert geometry.chunk_bytes(stack) <= max(CHUNK_TARGET, row)
    block = sum(geometry.chunk_bytes(s) * len(s.taps) for s in geometry.stacks)
    clip = -(-frames // geometry.rows(geometry.stacks[0])) if kind == "frames" else 1
    assert geometry.blocks_per_shard % clip == 0
    shard = sum(geometry.shard_bytes(stack, 0) for stack in geometry.stacks)
    assert shard <= max(SHARD_TARGET, clip * block) + MIB // 4  # checksums and index


def test_maps_of_a_large_picture_stay_in_small_shards():
    """ResNeXt-101 at 512 px: its stages are 15 MiB a picture, its 33 blocks 89 MiB."""
    stages = layout(taps_of("map", STAGES), None, 100).geometry
    assert (stages.samples_per_block, stages.blocks_per_shard) == (1, 16)
    stage = [0] * 3 + [1] * 4 + [2] * 23 + [3] * 3
    every = [TapSpec(name=f"b{i}", kind="map", shape=STAGES[s]) for i, s in enumerate(stage)]
    assert layout(every, None, 100).geometry.blocks_per_shard == 2


def test_maps_beside_tokens_bound_the_samples_of_a_block():
    taps = [*token_taps(1, 8), *taps_of("map", STAGES)]
    geometry = layout(taps, {"tokens": [10] * 200}, 200).geometry
    assert geometry.samples_per_block == 4
    small = [*token_taps(1, 8), TapSpec(name="eos", kind="vector", shape=(512,))]
    assert layout(small, {"tokens": [10] * 200}, 200).geometry.samples_per_block == 64


def test_an_axis_holds_tokens_or_frames():
    tap = TapSpec(name="f", kind="frames", shape=(4,))
    assert (tap.axis, tap.ragged) == ("frames", True)
    assert TapSpec(name="t", kind="tokens", shape=(4,)).axis == "tokens"
    mixed = [*token_taps(1), TapSpec(name="f", kind="frames", shape=(4,), axis="tokens")]
    with pytest.raises(InvalidTap, match="axis 'tokens', which holds tokens"):
        layout(mixed, {"tokens": [1]}, 1)
    with pytest.raises(InvalidTap, match="tap f"):
        TapSpec(name="f", kind="frames", shape=(0, 3))
