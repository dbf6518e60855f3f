import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from cachekit import Sample, contents, token_taps
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.metadata.v3 import ArrayV3Metadata

from cache import Cache, Fingerprint, InvalidTap, TapSpec, info, plan_layout, verify

TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

FIXED = {
    "grid": TapSpec(name="grid", kind="grid", shape=(3, 2)),
    "map": TapSpec(name="stage.1", kind="map", shape=(2, 3, 1), stride=4),
    "vector": TapSpec(name="pooled", kind="vector", shape=(5,)),
}


@st.composite
def sample_sets(draw):
    taps = []
    for axis in draw(st.sampled_from([(), ("tokens",), ("encoder", "decoder")])):
        taps += token_taps(draw(st.integers(1, 3)), draw(st.integers(1, 5)), axis)
    taps += [FIXED[kind] for kind in draw(st.sets(st.sampled_from(sorted(FIXED))))]
    if not taps:
        taps = token_taps(1)
    return Sample(
        lengths=draw(st.lists(st.integers(0, 30), max_size=25)),
        taps=draw(st.permutations(taps)),
        dtype=draw(st.sampled_from(sorted(TORCH))),
        block_tokens=draw(st.integers(1, 12)),
        blocks_per_shard=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 5)),
    )


@settings(deadline=None, max_examples=40)
@given(sample_sets(), st.booleans(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_any_cache_reads_back_and_has_the_planned_size(sample, overlap, batch, random):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cache"
        with sample.writer(path, overlap=overlap) as writer:
            for shard in writer.pending:
                sample.fill(writer, shard, batch)
            writer.finish()
        assert sum(map(len, contents(path).values())) == sample.layout().total_bytes
        cache = Cache.open(path)
        assert (cache.n_samples, cache.n_rows) == (sample.n, sample.n)
        asked = [random.randrange(sample.n) for _ in range(7)] if sample.n else []
        values = cache.read(np.array(asked, np.int64))
        assert list(values) == [tap.name for tap in sample.taps]
        for tap in sample.taps:
            assert values[tap.name].dtype == TORCH[sample.dtype]
            assert torch.equal(values[tap.name].float(), sample.values(tap, asked))
        assert np.array_equal(cache.find(sample.keys), np.arange(sample.n))
        report = verify(path)
        assert report.ok
        assert report.nbytes == cache.nbytes


def plain_samples(cache: Cache, array: np.ndarray, tap: int) -> list[np.ndarray]:
    """Take the samples out of a plain array by what docs/cache-format.md says."""
    found = []
    for i in range(cache.n_samples):
        flat = array[:, tap].reshape(-1, array.shape[-1])
        first = cache.table.block[i] * array.shape[2] + cache.table.start["tokens"][i]
        found.append(flat[first : first + cache.lengths["tokens"][i]])
    return found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_zarr_python_and_tensorstore_read_the_same_numbers(tmp_path, dtype):
    sample = Sample(dtype=dtype)
    path = sample.write(tmp_path / "cache")
    cache = Cache.open(path)
    array = zarr.open(str(path), mode="r")["activations/tokens-4"]
    assert array.attrs["logical_dtype"] == dtype
    assert array.attrs["taps"] == [tap.name for tap in sample.taps]
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path / "activations" / "tokens-4")},
    }
    other = tensorstore.open(spec, read=True).result().read().result()
    for plain in (array[:], other):
        for number, tap in enumerate(sample.taps):
            for i, rows in enumerate(plain_samples(cache, plain, number)):
                values = torch.from_numpy(np.ascontiguousarray(rows))
                values = values.view(torch.bfloat16) if dtype == "bfloat16" else values
                assert torch.equal(values.float(), sample.values(tap, [i]))
    assert np.array_equal(other, array[:])


def test_plain_zarr_reads_the_index(tmp_path):
    sample = Sample(taps=[*token_taps(2), *FIXED.values()])
    path = sample.write(tmp_path / "cache")
    cache = Cache.open(path)
    index = zarr.open(str(path), mode="r")["index"]
    assert np.array_equal(index["keys"][:], sample.keys)
    assert np.array_equal(index["block"][:], cache.table.block)
    assert np.array_equal(index["slot"][:], cache.table.slot)
    assert np.array_equal(index["length_tokens"][:], sample.lengths)
    assert np.array_equal(index["row_to_sample"][:], cache.row_to_sample)
    ends = index["row_id_offsets"][:]
    text = index["row_id_bytes"][:].tobytes()
    assert text[ends[0] : ends[1]].decode() == cache.row_ids[0] == "train/0 · Zürich 例"
    grid = zarr.open(str(path), mode="r")["activations/grid-3x2"][:]
    got = grid[cache.table.block[4], 0, cache.table.slot[4]]
    assert np.array_equal(got, sample.values(FIXED["grid"], [4])[0].numpy())


def test_metadata_is_what_zarr_python_would_write(tmp_path):
    sample = Sample(taps=[*token_taps(2), *FIXED.values()], dtype="bfloat16")
    path = sample.write(tmp_path / "cache")
    seen = 0
    for file in path.rglob("zarr.json"):
        stored = json.loads(file.read_text())
        if stored["node_type"] == "array":
            seen += 1
            again = json.loads(json.dumps(ArrayV3Metadata.from_dict(stored).to_dict()))
            assert again == stored
    assert seen == 4 + 8


def test_padding_is_zero(tmp_path):
    sample = Sample(taps=token_taps(1))
    path = sample.write(tmp_path / "cache", overlap=True)
    array = zarr.open(str(path), mode="r")["activations/tokens-4"][:]
    cache = Cache.open(path)
    used = np.zeros(array.shape[:1] + array.shape[2:3], bool)
    block, row = cache.table.rows(np.arange(sample.n), "tokens", sample.block_tokens)
    used[block, row] = True
    assert not used.all()
    assert not array[:, 0][~used].any()


@pytest.mark.parametrize("lengths", [(), (5,)])
def test_no_sample_and_one_sample(tmp_path, lengths):
    sample = Sample(lengths=lengths)
    cache = Cache.open(sample.write(tmp_path / "cache"))
    values = cache.read(np.arange(len(lengths)))
    for tap in sample.taps:
        assert torch.equal(values[tap.name].float(), sample.values(tap, range(len(lengths))))
    array = zarr.open(str(tmp_path / "cache"), mode="r")["activations/tokens-4"]
    assert array[:].shape[0] == len(lengths)


def test_a_sample_of_100_000_tokens(tmp_path):
    sample = Sample(lengths=(3, 100_000, 640, 1), taps=token_taps(2, 2), block_tokens=640)
    cache = Cache.open(sample.write(tmp_path / "cache"))
    assert cache.geometry.blocks_per_shard == 157
    values = cache.read(np.array([2, 1]))
    for tap in sample.taps:
        assert torch.equal(values[tap.name].float(), sample.values(tap, [2, 1]))


def test_no_sample_straddles_a_block_or_a_shard():
    rng = np.random.default_rng(0)
    sample = Sample(lengths=rng.integers(0, 35, 300), block_tokens=16, blocks_per_shard=3)
    layout = sample.layout()
    table, geometry = layout.packing.table, layout.geometry
    end = table.start["tokens"] + table.length["tokens"]
    long = table.length["tokens"] > 16
    assert (end[~long] <= 16).all()
    assert (table.start["tokens"][long] == 0).all()
    last = table.block + np.maximum(end - 1, 0) // 16
    assert np.array_equal(table.block // 3, last // 3)
    block, row = table.rows(np.arange(300), "tokens", 16)
    assert len(set(zip(block, row, strict=True))) == table.length["tokens"].sum()
    alone = table.block[long]
    assert all((table.block == b).sum() == 1 for b in alone)
    assert geometry.n_blocks > last.max()
    assert sorted(np.concatenate([layout.samples_of(s) for s in range(layout.n_shards)])) == list(
        range(300)
    )


def test_views_and_repeated_rows(tmp_path):
    sample = Sample()
    rows = np.array([[0, 1], [0, 2], [5, 5]])
    path = sample.write(tmp_path / "c", row_to_sample=rows, row_ids=["a", "", "ß/../x"])
    cache = Cache.open(path)
    assert np.array_equal(cache.row_to_sample, rows)
    assert cache.row_ids == ("a", "", "ß/../x")
    assert cache.geometry.n_views == 2


def test_find_tells_absent_keys(tmp_path):
    sample = Sample()
    cache = Cache.open(sample.write(tmp_path / "cache"))
    keys = np.concatenate([sample.keys[[4, 0]], np.zeros((1, 16), np.uint8)])
    assert cache.find(keys).tolist() == [4, 0, -1]
    with pytest.raises(IndexError, match="-1 from find"):
        cache.read(np.array([-1]))
    with pytest.raises(ValueError, match="uint8"):
        cache.find(keys.astype(np.int64))


def test_order_on_disk_is_permuted_by_the_seed():
    one, two = Sample(seed=1).layout(), Sample(seed=2).layout()
    assert not np.array_equal(one.packing.order, two.packing.order)
    assert np.array_equal(one.packing.order, Sample(seed=1).layout().packing.order)


def test_info_summarises(tmp_path):
    sample = Sample()
    summary = info(sample.write(tmp_path / "cache"))
    json.dumps(summary.to_dict())
    assert summary.complete
    assert summary.tokens == {"tokens": sum(sample.lengths)}
    assert summary.tap_bytes == sample.layout().tap_bytes
    assert summary.fingerprint == sample.fingerprint
    assert "complete" in summary.render()


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "..", ".hidden", "", "a..b", "x" * 201, "nul\0", "é", "-rf", "a\n"]
)
def test_tap_names_cannot_leave_the_folder(name):
    with pytest.raises(InvalidTap, match="tap name"):
        TapSpec(name=name, kind="vector", shape=(3,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "cube"},
        {"axis": "../x"},
        {"axis": "grid"},
        {"shape": ()},
        {"shape": (0,)},
        {"shape": (2, 3)},
        {"stride": 0},
    ],
)
def test_unusable_taps_are_refused(wrong):
    with pytest.raises(InvalidTap, match="tap t"):
        TapSpec(**({"name": "t", "kind": "tokens", "shape": (3,)} | wrong))


def test_contradicting_arguments_are_all_named():
    sample = Sample()
    wrong = {"lengths": {"other": np.ones(12)}, "row_to_sample": np.array([99]), "row_ids": []}
    with pytest.raises(ValueError, match=r"axes.*other.*int64.*99.*row ids"):
        plan_layout(n_samples=sample.n, **(sample.plan_kwargs | wrong))
    with pytest.raises(ValueError, match="float8"):
        plan_layout(n_samples=sample.n, **(sample.plan_kwargs | {"dtype": "float8"}))
    with pytest.raises(ValueError, match="at least 1"):
        plan_layout(n_samples=sample.n, **(sample.plan_kwargs | {"block_tokens": 0}))
    with pytest.raises(InvalidTap, match="doubled"):
        plan_layout(n_samples=sample.n, **(sample.plan_kwargs | {"taps": token_taps(1) * 2}))


def test_fingerprints_compare_by_content():
    one = Fingerprint({"b": [1, 2], "a": {"x": "é"}})
    two = Fingerprint({"a": {"x": "é"}, "b": (1, 2)})
    assert one == two
    assert one.digest == two.digest
    other = Fingerprint({"a": {"x": "e"}, "b": [1], "c": {}})
    assert one.digest != other.digest
    assert one.diff(other) == [
        'a.x: cached "\\u00e9", now "e"',
        "b.1: cached 2, now (absent)",
        "c: cached (absent), now {}",
    ]
    assert one.diff(two) == []
    with pytest.raises(ValueError, match="JSON compliant"):
        Fingerprint({"a": float("nan")})
