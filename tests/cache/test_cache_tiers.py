"""The device tier, and how tiers are chosen; the CPU stands in for an accelerator."""

import numpy as np
import pytest
import torch
from cachekit import Sample, frame_taps, token_taps
from hypothesis import given, settings
from hypothesis import strategies as st
from onesource import OneSource

from cache import Cache, Loader, Source
from cache.memory import ALIVE, STAGED, Demand, free_device_memory, plan_memory

LENGTHS = np.random.default_rng(1).integers(0, 9, 90).tolist()
SAMPLES = {
    "tokens": Sample(lengths=LENGTHS, taps=token_taps(), dtype="bfloat16"),
    "frames": Sample(lengths=LENGTHS, taps=frame_taps(), block_tokens={"frames": 8}),
}
DEMANDS = [
    Demand(name="", block=100, needed=10, window=4, batch=7),
    Demand(name="", block=10, needed=20, window=20, batch=1),
]
WHOLE = 1200 + ALIVE * 8


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiers")
    return {name: Cache.open(sample.write(root / name)) for name, sample in SAMPLES.items()}


@pytest.fixture
def accelerator(monkeypatch):
    """The CPU with memory of its own, as far as the loader can tell."""
    monkeypatch.setattr("cache.memory.free_device_memory", lambda device: 2**20)
    return torch.device("cpu")


def joint(caches, **extra):
    samples = np.random.default_rng(2).integers(0, 90, 50)
    sources = {
        "words": Source(cache=caches["tokens"], samples=samples, taps=["tokens.layer.1"]),
        "clips": Source(cache=caches["frames"], samples=samples[::-1].copy()),
    }
    return Loader(sources, **({"batch_size": 8, "seed": 3, "window": 2} | extra))


def same(one, two):
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.index, b.index)
        for name, part in a.parts.items():
            pairs = zip(part.stacks, b.parts[name].stacks, strict=True)
            assert all(torch.equal(x, y) for x, y in pairs)


def test_the_device_tier_gives_the_same_batches(caches, accelerator):
    device = joint(caches, tier="device", device=accelerator)
    assert device.tier == "device"
    assert device.tier_reason.startswith("device: asked for (")
    assert {store._home for feed in device.feeds.values() for store in feed._stores} == {
        accelerator
    }
    for epoch in range(2):  # the first fills the device, the second reads from it
        same(device.epoch(epoch), joint(caches, tier="disk").epoch(epoch))
    assert all(feed.resident() for feed in device.feeds.values())
    same(device.epoch(2, start_batch=3), list(joint(caches, tier="host").epoch(2))[3:])


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_a_store_on_a_device_gathers_what_one_on_the_host_does(caches, data):
    """Also with room for few blocks, when a batch is put together in several goes."""
    name = data.draw(st.sampled_from(sorted(caches)))
    cache = caches[name]
    taps = data.draw(st.sampled_from([group.taps for group in cache.group_taps(_names(cache))]))
    (group,) = cache.group_taps(taps)
    capacity = data.draw(st.integers(1, 9))
    samples = np.array(data.draw(st.lists(st.integers(0, 89), max_size=30)), np.int64)
    places = cache.places(group.stack, samples)
    stores = [cache.store(taps, capacity, home) for home in (None, torch.device("cpu"))]
    one, two = (store.gather(*places) for store in stores)
    assert torch.equal(one, two)
    for tap, values in zip(taps, one, strict=True):
        spec = next(t for t in SAMPLES[name].taps if t.name == tap)
        assert torch.equal(values.float(), SAMPLES[name].values(spec, samples.tolist()))


def _names(cache):
    return [tap.name for tap in cache.taps]


def test_int8_numbers_on_a_device(tmp_path, accelerator):
    from cache import convert

    wide = Sample(lengths=LENGTHS, taps=token_taps(2, width=16), dtype="float32")
    convert(wide.write(tmp_path / "float32"), tmp_path / "int8", dtype="int8")
    cache = Cache.open(tmp_path / "int8")
    options = {"taps": None, "batch_size": 16, "seed": 0}
    device = OneSource(cache, np.arange(90), tier="device", device=accelerator, **options)
    host = OneSource(cache, np.arange(90), tier="host", **options)
    assert device.tier == "device"
    for a, b in zip(device.epoch(0), host.epoch(0), strict=True):
        assert a.values.dtype == torch.float32
        assert torch.equal(a.values, b.values)


def test_auto_takes_the_first_tier_that_fits(caches, accelerator):
    roomy = joint(caches, device=accelerator)
    assert roomy.tier == "device"
    assert "fits in the limit of 0.5 MiB on the device" in roomy.tier_reason  # half of what is free
    need = roomy.device_bytes
    assert joint(caches, device=accelerator, device_limit=need).tier == "device"
    host = joint(caches, device=accelerator, device_limit=need - 1)
    assert host.tier == "host"
    assert "exceeds the limit" in host.tier_reason
    assert "on the device and fits in the limit of" in host.tier_reason
    least = joint(caches, device=accelerator, device_limit=0, memory_limit=host.memory_bytes - 1)
    assert least.tier == "disk"


def test_without_an_accelerator_the_device_tier_is_the_host_tier(caches):
    for device in (None, torch.device("cpu")):
        loader = joint(caches, tier="device", device=device)
        assert loader.tier == "host"
        assert loader.tier_reason.startswith("host: the device is the CPU")
        assert loader.device_bytes == 0
    assert free_device_memory(torch.device("meta")) == 0


def test_plans_count_every_byte():
    device = plan_memory(DEMANDS, "auto", 10**6, WHOLE)
    assert (device.tier, device.device_bytes, device.limit) == ("device", WHOLE, WHOLE)
    assert device.nbytes == STAGED * 110
    assert device.capacities == (10, 20)
    host = plan_memory(DEMANDS, "auto", WHOLE, WHOLE - 1)
    assert (host.tier, host.nbytes, host.device_bytes) == ("host", WHOLE, ALIVE * 8)
    disk = plan_memory(DEMANDS, "auto", WHOLE - 1, 0)
    assert (disk.tier, disk.nbytes) == ("disk", 400 + 200 + ALIVE * 8)
    assert plan_memory(DEMANDS, "auto", WHOLE).device_bytes == 0
    with pytest.raises(MemoryError, match=r"the device tier needs .* or take the disk tier"):
        plan_memory(DEMANDS, "device", 10**6, WHOLE - 1)


def test_loaders_share_the_device(caches, accelerator):
    train = joint(caches, device=accelerator, tier="device")
    test = joint(caches, device=accelerator, tier="device", seed=9)
    host = joint(caches, tier="host")
    for name, feed in train.feeds.items():
        assert feed._stores == test.feeds[name]._stores
        assert feed._stores != host.feeds[name]._stores


def test_the_first_epoch_streams_while_it_fills_the_tier(tmp_path):
    """Batches come before all blocks are in memory, and later epochs read none."""
    cache = Cache.open(SAMPLES["tokens"].write(tmp_path / "cache"))
    loader = OneSource(cache, np.arange(90), taps=None, batch_size=4, seed=0, tier="host", window=1)
    (store,) = loader.joint.feeds[""]._stores
    epoch = loader.epoch(0)
    next(epoch)
    assert 0 < len(store._place) < cache.geometry.n_blocks // 2
    for _ in epoch:
        pass
    (tmp_path / "cache" / "activations").rename(tmp_path / "gone")
    assert sum(len(batch.index) for batch in loader.epoch(1)) == 90
