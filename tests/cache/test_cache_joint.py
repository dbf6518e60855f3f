"""Batches from several caches: numbers, order, views, resume, tiers and memory."""

import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from cachekit import Counted, Sample, frame_taps, token_taps
from hypothesis import given, settings
from hypothesis import strategies as st
from onesource import OneSource

from cache import Cache, InvalidTap, Loader, Source, TapSpec
from cache.memory import Demand, plan_memory

RNG = np.random.default_rng(3)
FIXED = [
    TapSpec(name="stage.1", kind="map", shape=(4, 6, 5)),
    TapSpec(name="stage.2", kind="map", shape=(8, 3, 2)),
    TapSpec(name="grid.1", kind="grid", shape=(3, 4)),
    TapSpec(name="grid.2", kind="grid", shape=(3, 4)),
    TapSpec(name="cls", kind="vector", shape=(5,)),
]
SAMPLES = {
    "text": Sample(lengths=RNG.integers(1, 9, 120).tolist(), taps=token_taps(3)),
    "image": Sample(lengths=[1] * 60, taps=FIXED, dtype="float32"),
    "video": Sample(
        lengths=RNG.integers(0, 12, 50).tolist(),
        taps=frame_taps(),
        block_tokens={"frames": 4},
        dtype="bfloat16",
    ),
}
TAPS = {
    "text": [None, ["tokens.layer.2", "tokens.layer.0"]],
    "image": [None, ["stage.2", "cls", "stage.1"], ["grid.2"]],
    "video": [None, ["clip.cls", "clip.map"]],
}


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    root = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.format.blocks.CHUNK_TARGET", 2000)  # 4 pictures a block
        paths = {name: sample.write(root / name) for name, sample in SAMPLES.items()}
    return {name: Cache.open(path) for name, path in paths.items()}


def pairs(caches, n=70, *, media="image", views=False, **extra):
    """Captions and their pictures, about two a picture."""
    rng = np.random.default_rng(n)
    words = rng.integers(0, SAMPLES["text"].n, (n, 3))
    seen = rng.integers(0, SAMPLES[media].n // 2, n)
    picked = np.stack([seen, seen + SAMPLES[media].n // 2], 1)
    sources = {
        "text": Source(
            cache=caches["text"],
            samples=words if views else words[:, 0],
            taps=["tokens.layer.1"],
            views=views,
        ),
        "media": Source(
            cache=caches[media],
            samples=picked if views else seen,
            taps=["stage.1", "stage.2"] if media == "image" else None,
            views=views,
        ),
    }
    return Loader(sources, **({"batch_size": 8, "seed": 5, "window": 3} | extra))


def same(one, two):
    one, two = list(one), list(two)
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.index, b.index)
        assert list(a.parts) == list(b.parts)
        for name, part in a.parts.items():
            other = b.parts[name]
            assert list(part.states) == list(other.states)
            assert all(torch.equal(x, other.states[tap]) for tap, x in part.states.items())
            assert all(torch.equal(x, y) for x, y in zip(part.stacks, other.stacks, strict=True))
            assert all(torch.equal(x, other.offsets[axis]) for axis, x in part.offsets.items())


def check_part(part, sample, taps, samples):
    """The part holds the numbers of `samples`, in order, tap by tap and stacked."""
    specs = {tap.name: tap for tap in sample.taps}
    assert list(part.states) == (list(specs) if taps is None else taps)
    for tap, values in part.states.items():
        assert torch.equal(values.float(), sample.values(specs[tap], samples))
    shapes = list(dict.fromkeys(specs[tap].shape for tap in part.states))
    assert [tuple(stack.shape[2:]) for stack in part.stacks] == shapes
    for stack, shape in zip(part.stacks, shapes, strict=True):
        taps_of_it = [v for t, v in part.states.items() if specs[t].shape == shape]
        assert torch.equal(stack, torch.stack(taps_of_it))
        assert stack[0].data_ptr() == taps_of_it[0].data_ptr()  # a view, not a copy
    axes = {specs[tap].axis for tap in part.states if specs[tap].ragged}
    assert set(part.offsets) == axes
    for axis, offsets in part.offsets.items():
        assert offsets.diff().tolist() == sample.axis_lengths(axis)[samples].tolist()


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_sources_give_the_right_numbers_in_a_fixed_order(caches, data):
    names = data.draw(st.lists(st.sampled_from(sorted(SAMPLES)), min_size=1, max_size=3))
    n = data.draw(st.integers(0, 30))
    sources = {}
    for number, name in enumerate(names):
        views = data.draw(st.sampled_from([None, 1, 3]))
        shape = (n,) if views is None else (n, views)
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        sources[f"{name}.{number}"] = Source(
            cache=caches[name],
            samples=rng.integers(0, SAMPLES[name].n, shape),
            taps=data.draw(st.sampled_from(TAPS[name])),
            views=views is not None,
        )
    kwargs = {
        "batch_size": data.draw(st.integers(1, 9)),
        "seed": data.draw(st.integers(0, 9)),
        "window": data.draw(st.integers(1, 4)),
        "shuffle": data.draw(st.booleans()),
        "drop_last": data.draw(st.booleans()),
        "spread": data.draw(st.booleans()),
    }
    host = Loader(sources, tier="host", **kwargs)
    roomy = Loader(sources, tier="disk", **kwargs)
    whole = list(host.epoch(2))
    assert len(whole) == len(host) == len(roomy)
    order = np.concatenate([batch.index.numpy() for batch in whole] or [np.empty(0, np.int64)])
    assert np.array_equal(order, host.order(2)[: len(order)])
    for number, (key, source) in enumerate(sources.items()):
        drawn = host.feeds[key].drawn(kwargs["seed"], 2, number)
        asked = source.samples if source.views else source.samples[:, None]
        assert (drawn == asked).any(1).all()
        for batch in whole:
            used = drawn[batch.index.numpy(), 0]
            check_part(batch.parts[key], SAMPLES[key.split(".")[0]], source.taps, used)
    same(whole, roomy.epoch(2))
    blocks = [(d.block, c) for d, c in zip(demands(roomy), roomy.memory.capacities, strict=True)]
    least = roomy.memory_bytes - sum(block * (count - 1) for block, count in blocks)
    tight = Loader(sources, tier="disk", memory_limit=least, **kwargs)
    assert set(tight.memory.capacities) == {1}
    start = data.draw(st.integers(0, len(whole) + 1))
    same(whole[start:], tight.epoch(2, start_batch=start))
    same(whole[start:], host.epoch(2, start_batch=start))


def demands(loader):
    names = sorted(loader.feeds, key=lambda name: name != loader.primary)
    asked = {name: loader.feeds[name].demands(loader.limits) for name in names}
    weight = {name: sum(d.needed * d.block for d in asked[name]) for name in names}
    names.sort(key=lambda name: (name != loader.primary, weight[name]))
    return [d for name in names for d in asked[name]]


def test_one_source_is_the_loader(caches):
    """The loader of one cache is the joint loader with one source, without rounds."""
    samples = RNG.integers(0, 120, 50)
    taps = ["tokens.layer.1", "tokens.layer.0"]
    kwargs = {"batch_size": 7, "seed": 2, "window": 2}
    one = OneSource(caches["text"], samples, taps=taps, **kwargs)
    source = Source(cache=caches["text"], samples=samples, taps=taps)
    joint = Loader({"only": source}, spread=False, **kwargs)
    for a, b in zip(one.epoch(3), joint.epoch(3), strict=True):
        part = b.parts["only"]
        assert torch.equal(a.values, part.stacks[0])
        assert torch.equal(a.offsets, part.offsets["tokens"])
        assert torch.equal(a.index, b.index)


@pytest.mark.parametrize("media", ["image", "video"])
def test_the_larger_source_leads_block_by_block(caches, media):
    loader = pairs(caches, media=media, spread=False)
    assert loader.primary == "media"
    blocks = caches[media].table.block[loader.feeds["media"].samples[:, 0]][loader.order(1)]
    first = {block: np.flatnonzero(blocks == block)[[0, -1]] for block in set(blocks.tolist())}
    for place in range(len(blocks)):
        assert sum(low <= place <= high for low, high in first.values()) <= 2 * 3


def test_captions_of_a_picture_are_kept_apart(caches):
    loader = pairs(caches, 300)
    together = pairs(caches, 300, spread=False)
    seen = loader.feeds["media"].samples[:, 0]

    def doubled(which):
        order = seen[which.order(0)]
        return sum(len(set(order[low : low + 8])) < 8 for low in range(0, 296, 8))

    assert doubled(loader) < doubled(together) / 3


def test_views_are_drawn_for_each_example_and_epoch(caches):
    loader = pairs(caches, views=True)
    drawn = {}
    for epoch in range(12):
        for batch in loader.epoch(epoch):
            sample, taps = SAMPLES["text"], SAMPLES["text"].taps
            offsets = batch.parts["text"].offsets["tokens"].tolist()
            for i, (low, high) in zip(batch.index.tolist(), pairwise(offsets), strict=True):
                states = batch.parts["text"].states["tokens.layer.1"][low:high]
                views = loader.feeds["text"].samples[i]
                matching = {
                    v
                    for v, s in enumerate(views)
                    if len(states) == sample.lengths[s]
                    and torch.equal(states.float(), sample.values(taps[1], [s]))
                }
                assert matching
                drawn.setdefault(i, set()).update(matching)
    assert all(len(views) >= 2 for views in drawn.values())
    assert np.mean([views == {0, 1, 2} for views in drawn.values()]) > 0.9
    fixed = pairs(caches, views=True, shuffle=False)
    assert next(fixed.epoch(0)).index.tolist() == list(range(8))


def test_resuming_with_views_in_mid_epoch(caches):
    loader = pairs(caches, views=True, tier="disk")
    whole = list(loader.epoch(4))
    same(whole[5:], pairs(caches, views=True, tier="host").epoch(4, start_batch=5))
    assert not np.array_equal(loader.order(4), loader.order(5))


@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("media", ["image", "video"])
def test_never_more_memory_than_stated(tmp_path, caches, monkeypatch, tier, views, media):
    fresh = {name: Cache.open(cache.path) for name, cache in caches.items()}  # nothing shared yet
    roomy = pairs(fresh, views=views, media=media, tier=tier)
    for limit in (roomy.memory_bytes, (roomy.memory_bytes * 3) // 4)[: 1 if tier == "host" else 2]:
        del roomy
        counted = Counted(monkeypatch)
        roomy = pairs(fresh, views=views, media=media, tier=tier, memory_limit=limit)
        assert roomy.memory_bytes <= limit
        for epoch in range(2):
            for batch in roomy.epoch(epoch):
                assert len(batch.index)
        del batch
        stores = [store for feed in roomy.feeds.values() for store in feed._stores]
        held = sum(feed.held_bytes for feed in roomy.feeds.values())
        assert 0 < counted.now <= held  # nothing else outlives an epoch
        untouched = sum(  # address space without pages
            store.nbytes // store.capacity * (store.capacity - len(store._place))
            for store in stores
        )
        assert 0 < counted.peak - untouched * (tier == "host") <= roomy.memory_bytes
        monkeypatch.undo()


def test_the_tier_is_chosen_over_all_sources_and_says_why(caches):
    host = pairs(caches)
    assert host.tier_reason.startswith("host: ")
    assert "fits in the limit" in host.tier_reason
    disk = pairs(caches, memory_limit=host.memory_bytes - 1)
    assert disk.tier_reason.startswith("disk: ")
    assert "exceeds the limit" in disk.tier_reason
    assert "media" in disk.tier_reason
    assert "text whole" in disk.tier_reason
    with pytest.raises(MemoryError, match="take the disk tier"):
        pairs(caches, tier="host", memory_limit=host.memory_bytes - 1)
    with pytest.raises(MemoryError, match="fewer taps or a smaller batch"):
        pairs(caches, memory_limit=1000)


def test_memory_goes_to_the_leading_window_first_and_then_to_what_is_read_at_random():
    lead = Demand(name="image", block=100, needed=50, window=6, batch=10)
    text = Demand(name="text", block=10, needed=20, window=20, batch=5)
    plan = plan_memory([lead, text], "disk", 900)
    assert plan.capacities == (6, 20)
    assert plan.nbytes == 600 + 200 + 4 * 15
    assert plan.reason.endswith("held: 6 of 50 blocks of image, text whole")
    assert plan_memory([lead, text], "disk", 690).capacities == (6, 3)
    assert plan_memory([lead, text], "disk", 170).capacities == (1, 1)
    with pytest.raises(MemoryError, match="disk tier needs"):
        plan_memory([lead, text], "disk", 169)


def test_loaders_share_what_is_in_memory(caches):
    train, test = pairs(caches), pairs(caches, 20)
    for name in ("text", "media"):
        assert train.feeds[name]._stores == test.feeds[name]._stores


def test_leaving_an_epoch_early_stops_its_thread(caches):
    before = threading.active_count()
    loader = pairs(caches, tier="disk")
    epoch = loader.epoch(0)
    next(epoch)
    epoch.close()
    assert threading.active_count() == before


def test_sources_that_do_not_fit_together_are_refused(caches):
    text, image = caches["text"], caches["image"]
    good = Source(cache=image, samples=np.arange(4), taps=["cls"])

    def join(**sources):
        return Loader(sources, batch_size=2, seed=0)

    with pytest.raises(ValueError, match=r"same examples.*'image': 4.*'text': 3"):
        join(image=good, text=Source(cache=text, samples=np.arange(3)))
    with pytest.raises(ValueError, match="same examples"):
        join()
    with pytest.raises(ValueError, match=r"samples of image with views=True must be \[n, V\]"):
        join(image=Source(cache=image, samples=np.arange(4), views=True))
    with pytest.raises(ValueError, match=r"samples of image must be"):
        join(image=Source(cache=image, samples=np.zeros((2, 2, 2), int)))
    with pytest.raises(InvalidTap, match="nope"):
        join(image=Source(cache=image, samples=np.arange(4), taps=["nope"]))
    with pytest.raises(IndexError, match="0 to 60 were asked"):
        join(image=Source(cache=image, samples=np.arange(61)))
    with pytest.raises(ValueError, match="window=0"):
        Loader({"image": good}, batch_size=2, seed=0, window=0)
