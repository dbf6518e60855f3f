import threading

import numpy as np
import pytest
import torch
from cachekit import Sample, token_taps
from onesource import OneSource

from cache import Cache, InvalidTap, TapSpec
from cache.memory import ALIVE

RNG = np.random.default_rng(7)
LENGTHS = (*RNG.integers(0, 9, 149).tolist(), 47)
VECTOR = TapSpec(name="pooled", kind="vector", shape=(5,))
SAMPLE = Sample(lengths=LENGTHS, taps=[*token_taps(), VECTOR], dtype="bfloat16")
TAPS = ["tokens.layer.2", "tokens.layer.0"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return Cache.open(SAMPLE.write(tmp_path_factory.mktemp("loader") / "cache"))


def loader(cache, samples=None, **extra):
    samples = np.arange(SAMPLE.n) if samples is None else samples
    settings = {"taps": TAPS, "batch_size": 8, "seed": 5, "window": 3}
    return OneSource(cache, samples, **(settings | extra))


def store_of(loader):
    (feed,) = loader.joint.feeds.values()
    (store,) = feed._stores
    return store


def expected(batch, samples):
    """The values a batch must have: first segments first."""
    wanted = np.asarray(samples)[batch.index.numpy()].T.reshape(-1)
    return torch.stack([SAMPLE.values(SAMPLE.taps[i], wanted) for i in (2, 0)]).bfloat16()


def same(one, two):
    one, two = list(one), list(two)
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("tier", ["host", "disk", "auto"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("segments", [1, 2])
def test_batches_hold_the_right_numbers(opened, tier, shuffle, segments):
    samples = RNG.integers(0, SAMPLE.n, (61, segments))
    samples = samples[:, 0] if segments == 1 else samples
    batches = loader(opened, samples, tier=tier, shuffle=shuffle)
    seen = []
    for batch in batches.epoch(2):
        assert torch.equal(batch.values, expected(batch, samples))
        assert batch.values.dtype == torch.bfloat16
        used = samples[batch.index.numpy()].T.reshape(-1)
        assert torch.equal(batch.offsets.diff(), torch.tensor(np.array(LENGTHS)[used]))
        seen.append(batch.index)
    assert [len(s) for s in seen] == [8] * 7 + [5]
    order = torch.cat(seen)
    assert torch.equal(order.sort().values, torch.arange(61))
    assert torch.equal(order, torch.arange(61)) != shuffle


def test_order_depends_on_seed_and_epoch_alone(opened):
    disk, host = loader(opened, tier="disk"), loader(opened, tier="host")
    same(disk.epoch(4), host.epoch(4))
    same(disk.epoch(4), loader(opened, tier="disk").epoch(4))
    orders = [disk.order(4), disk.order(5), loader(opened, seed=6).order(4)]
    assert len({tuple(o) for o in orders}) == 3


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_resuming_in_mid_epoch_gives_the_remaining_batches(opened, tier):
    batches = loader(opened, tier=tier)
    whole = list(batches.epoch(1))
    for start in (0, 1, 7, len(whole), len(whole) + 3):
        same(whole[start:], batches.epoch(1, start_batch=start))


def test_window_keeps_blocks_together(opened):
    """Within an epoch the blocks of a window come once: the disk is read once."""
    order = loader(opened, window=3).order(0)
    blocks = opened.table.block[order]
    seen, left = set(), set()
    for low in range(0, len(blocks), 1):
        if blocks[low] not in seen:
            seen.add(blocks[low])
        last = np.flatnonzero(blocks == blocks[low])[-1]
        if last == low:
            left.add(blocks[low])
        assert len(seen - left) <= 2 * 3
    small = loader(opened, window=10_000).order(0)
    assert len(set(opened.table.block[small[:8]])) > 4


def test_drop_last_and_length(opened):
    keep, drop = loader(opened), loader(opened, drop_last=True)
    assert (len(keep), len(drop)) == (19, 18)
    assert len(list(drop.epoch(0))) == 18
    assert {len(b.index) for b in drop.epoch(0)} == {8}


def test_no_samples(opened):
    for tier in ("host", "disk"):
        assert list(loader(opened, np.empty(0, np.int64), tier=tier).epoch(0)) == []


def test_fixed_taps_load_too(opened):
    for batch in loader(opened, np.arange(20), taps=["pooled"], shuffle=False).epoch(0):
        values = SAMPLE.values(VECTOR, batch.index.tolist())
        assert torch.equal(batch.values.float(), values[None])
        assert torch.equal(batch.offsets, torch.arange(len(batch.index) + 1))


def test_taps_of_different_shapes_are_refused(opened):
    with pytest.raises(InvalidTap, match=r"different shapes.*vector-5"):
        loader(opened, taps=None)
    with pytest.raises(InvalidTap, match=r"nope.*tokens\.layer\.0"):
        loader(opened, taps=["nope"])
    with pytest.raises(IndexError, match="absent"):
        loader(opened, np.array([0, -1]))
    with pytest.raises(ValueError, match="floppy"):
        loader(opened, tier="floppy")
    with pytest.raises(ValueError, match="batch_size"):
        loader(opened, batch_size=0)


def test_the_tier_is_chosen_by_size_and_says_why(opened):
    host = loader(opened).memory_bytes
    assert loader(opened, memory_limit=host).tier_reason.startswith("host: ")
    small = loader(opened, memory_limit=host - 1)
    assert small.tier == "disk"
    assert small.tier_reason.startswith("disk: ")
    assert "exceeds the limit" in small.tier_reason
    assert "asked for" in loader(opened, tier="disk").tier_reason
    with pytest.raises(MemoryError, match="disk tier"):
        loader(opened, tier="host", memory_limit=host - 1)
    with pytest.raises(MemoryError, match="smaller batch"):
        loader(opened, memory_limit=1)


@pytest.mark.parametrize("segments", [1, 2])
def test_less_memory_changes_nothing_but_the_speed(opened, segments):
    samples = RNG.integers(0, SAMPLE.n, (61, segments))
    roomy = loader(opened, samples, tier="disk")
    (feed,) = roomy.joint.feeds.values()
    (capacity,) = roomy.joint.memory.capacities
    least = roomy.memory_bytes - (capacity - 1) * feed.block_bytes
    tight = loader(opened, samples, tier="disk", memory_limit=least)
    assert tight.joint.memory.capacities == (1,)
    assert tight.memory_bytes <= least
    same(roomy.epoch(3), tight.epoch(3))


def test_the_stated_memory_is_kept(opened):
    batches = loader(opened, tier="disk", memory_limit=20_000)
    held = batches.joint.feeds[""].held_bytes
    largest = max(batch.values.nbytes for epoch in range(3) for batch in batches.epoch(epoch))
    assert held + ALIVE * largest <= batches.memory_bytes <= 20_000


def test_loaders_of_one_cache_share_the_host_tier(opened):
    train, test = loader(opened, np.arange(100)), loader(opened, np.arange(100, 150))
    assert store_of(train) is store_of(test)
    assert store_of(train) is not store_of(loader(opened, taps=TAPS[::-1]))


def test_leaving_an_epoch_early_stops_its_thread(opened):
    before = threading.active_count()
    batches = loader(opened, tier="disk")
    for _ in range(3):
        epoch = batches.epoch(0)
        next(epoch)
        epoch.close()
    assert threading.active_count() == before
    same(batches.epoch(0), loader(opened, tier="host").epoch(0))


def test_two_epochs_at_once_do_not_disturb_each_other(opened):
    batches = loader(opened, tier="disk")
    pairs = list(zip(batches.epoch(0), batches.epoch(1), strict=True))
    same([one for one, _ in pairs], batches.epoch(0))
    same([two for _, two in pairs], batches.epoch(1))


def test_batches_are_as_good_as_drawn_at_random(tmp_path):
    """Variance of the batch means of a window shuffle against that of a full shuffle."""
    lengths = np.sort(np.random.default_rng(0).integers(1, 20, 2000))
    sample = Sample(lengths=lengths.tolist(), taps=token_taps(1, 1), block_tokens=64)
    cache = Cache.open(sample.write(tmp_path / "c"))
    target = lengths.astype(float)
    batches = OneSource(cache, np.arange(2000), taps=None, batch_size=20, seed=0, window=8)
    rng = np.random.default_rng(1)
    ours = [target[batches.order(e)].reshape(-1, 20).mean(1).var() for e in range(30)]
    random = [target[rng.permutation(2000)].reshape(-1, 20).mean(1).var() for _ in range(30)]
    assert 0.8 < np.mean(ours) / np.mean(random) < 1.2
