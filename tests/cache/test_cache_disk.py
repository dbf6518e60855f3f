"""Batches from the disk tier: the same numbers, each chunk once, errors, memory."""

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from cachekit import Counted, Sample, frame_taps, token_taps
from hypothesis import given, settings
from hypothesis import strategies as st
from onesource import OneSource

from cache import Cache, CacheDamaged, Loader, Source, TapSpec
from cache.reading.chunks import ChunkReader

RNG = np.random.default_rng(5)
LENGTHS = (*RNG.integers(0, 12, 119).tolist(), 33)
VECTOR = TapSpec(name="pooled", kind="vector", shape=(5,))
SAMPLES = {
    "float16": Sample(lengths=LENGTHS, taps=[*token_taps(5), VECTOR]),
    "int8": Sample(lengths=LENGTHS, taps=[*token_taps(2), VECTOR], dtype="int8"),
    "mixed": Sample(
        lengths=LENGTHS,
        taps=token_taps(4),
        dtype={f"tokens.layer.{i}": kind for i, kind in enumerate(["float16", "int8"] * 2)},
    ),
    "frames": Sample(
        lengths=LENGTHS, taps=frame_taps(), block_tokens={"frames": 8}, dtype="bfloat16"
    ),
}


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    root, caches = tmp_path_factory.mktemp("stream"), {}
    for name, sample in SAMPLES.items():
        types = sample.dtype if isinstance(sample.dtype, dict) else {}
        rms = {
            tap.name: torch.ones(tap.shape[-1])
            for tap in sample.taps
            if types.get(tap.name, sample.dtype) == "int8"
        }
        extra = {"rms": rms} if rms else {}
        caches[name] = Cache.open(sample.write(root / name, **extra))
        if name == "mixed":
            packed = sample.write(root / "compressed", compression="zstd", **extra)
            caches["compressed"] = Cache.open(packed)
    return caches


def joint(cache, samples=None, **extra):
    samples = np.arange(len(LENGTHS)) if samples is None else samples
    options = {"batch_size": 8, "seed": 5, "window": 2, "spread": False, "tier": "disk"} | extra
    return Loader({"": Source(cache=cache, samples=samples)}, **options)


def bits(batch):
    """Everything a batch holds, as bytes."""
    part = batch.parts[""]
    tensors = [batch.index, *part.stacks, *part.offsets.values()]
    return [(t.dtype, t.shape, t.contiguous().view(-1).view(torch.uint8).clone()) for t in tensors]


def same(one, two):
    for a, b in zip(one, two, strict=True):
        for (dtype, shape, data), (other, size, known) in zip(a, b, strict=True):
            assert (dtype, shape) == (other, size)
            assert torch.equal(data, known)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_bit_for_bit_the_same_over_tiers_threads_and_memory(caches, data):
    """The reference reads each batch by itself, with no loader between."""
    cache = caches[data.draw(st.sampled_from(sorted(caches)))]
    n = data.draw(st.integers(0, 120))
    samples = np.random.default_rng(n).permutation(len(LENGTHS))[:n]
    options = {
        "batch_size": data.draw(st.integers(1, 30)),
        "window": data.draw(st.integers(1, 5)),
        "shuffle": data.draw(st.booleans()),
        "max_tokens": data.draw(st.one_of(st.none(), st.integers(1, 90))),
    }
    epoch = data.draw(st.integers(0, 2))
    host = joint(cache, samples, tier="host", **options)
    known = [bits(batch) for batch in host.epoch(epoch)]
    disk = joint(cache, samples, threads=data.draw(st.integers(1, 4)), **options)
    feed = disk.feeds[""]
    same(known, [bits(batch) for batch in disk.epoch(epoch)])
    start = data.draw(st.integers(0, len(known)))
    same(known[start:], [bits(batch) for batch in disk.epoch(epoch, start_batch=start)])
    least = disk.memory_bytes - sum(
        (held - 1) * demand.block
        for held, demand in zip(disk.memory.capacities, feed.demands(disk.limits), strict=True)
    )
    limit = data.draw(st.integers(least, disk.memory_bytes))
    tight = joint(cache, samples, memory_limit=limit, **options)
    same(known, [bits(batch) for batch in tight.epoch(epoch)])
    for batch in tight.epoch(epoch):
        wanted = cache.read(samples[batch.index.numpy()])
        for tap, states in batch.parts[""].states.items():
            assert torch.equal(states, wanted[tap].to(states.dtype))


def test_views_and_other_sources_beside(caches):
    views = np.stack([np.arange(60), np.arange(60, 120)], axis=1)
    sources = {
        "a": Source(cache=caches["float16"], samples=views, views=True),
        "b": Source(cache=caches["frames"], samples=np.arange(60)[::-1].copy()),
    }
    options = {"batch_size": 7, "seed": 1, "window": 2}
    disk = Loader(sources, tier="disk", memory_limit=30_000, **options)
    assert not disk.feeds[disk.primary].resident()
    host = Loader(sources, tier="host", **options)
    for epoch in range(2):
        for one, two in zip(disk.epoch(epoch), host.epoch(epoch), strict=True):
            assert torch.equal(one.index, two.index)
            for name, part in one.parts.items():
                pairs = zip(part.stacks, two.parts[name].stacks, strict=True)
                assert all(torch.equal(a, b) for a, b in pairs)


def test_chunks_are_read_once_an_epoch(caches, monkeypatch):
    """Also those of windows that a batch straddles; and only the taps asked for."""
    read: Counter = Counter()
    plain = ChunkReader.read_block

    def counting(self, block, taps, into):
        read.update((self.stack.name, block, tap) for tap in taps)
        plain(self, block, taps, into)

    monkeypatch.setattr(ChunkReader, "read_block", counting)
    cache = caches["float16"]
    taps = ["tokens.layer.3", "tokens.layer.1"]
    loader = OneSource(
        cache, np.arange(120), taps=taps, batch_size=9, seed=0, tier="disk", window=3, threads=3
    )
    for epoch in range(3):
        read.clear()
        assert sum(len(batch.index) for batch in loader.epoch(epoch)) == 120
        assert sum(read.values()) <= 1.1 * len(read)  # a long sample has more blocks than windows
        assert {tap for _, _, tap in read} == {1, 3}


def damaged(tmp_path, **options):
    """A cache with a flipped byte, and the block it lies in."""
    sample = Sample(lengths=[4] * 60, taps=token_taps(), blocks_per_shard=4, block_tokens=12)
    path = sample.write(tmp_path / "cache")
    cache = Cache.open(path)
    (stack,) = cache.geometry.stacks
    shard = path / cache.geometry.shard_path(stack, 2)
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    return cache, 8


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("wait", [False, True])
def test_an_error_comes_with_the_batch_that_needs_the_block(tmp_path, threads, wait):
    cache, block = damaged(tmp_path)
    before = threading.active_count()
    loader = joint(cache, np.arange(60), window=3, batch_size=2, threads=threads)
    for epoch in range(3):
        batches = loader.batches(epoch)
        bad = next(
            i for i, batch in enumerate(batches) if (cache.table.block[batch] == block).any()
        )
        running = loader.epoch(epoch)
        for _ in range(bad):
            next(running)
            if wait:
                threading.Event().wait(0.005)  # the threads run far ahead
        with pytest.raises(CacheDamaged, match=r"tap tokens\.layer\.0 of block 8 fails its check"):
            next(running)
        assert list(running) == []
        assert threading.active_count() == before


def test_leaving_early_joins_the_threads(caches):
    before = threading.active_count()
    loader = joint(caches["float16"], threads=3)
    for stop in range(4):
        epoch = loader.epoch(0)
        for _ in range(stop):
            next(epoch)
        epoch.close()
        assert threading.active_count() == before


@pytest.mark.parametrize("every", [1, 4])
def test_kept_batches_stay_as_they_were(caches, every):
    """Whoever keeps batches has memory of his own for them; the others go on as before."""
    cache = caches["float16"]
    loader, kept = joint(cache, batch_size=5), []
    for epoch in range(2):
        for number, batch in enumerate(loader.epoch(epoch)):
            if number % every == 0:
                kept.append((batch.index, batch.parts[""].states["tokens.layer.1"][1:]))
            else:
                for stack in batch.parts[""].stacks:
                    stack.fill_(3)
            del batch
    tap = SAMPLES["float16"].taps[1]
    for index, states in kept:
        wanted = SAMPLES["float16"].values(tap, index.tolist())
        assert torch.equal(states.float(), wanted[1:])


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_never_more_memory_than_stated(caches, data):
    """What is filled, what is handed out, and the buffers of the threads, counted as made."""
    cache = Cache.open(caches[data.draw(st.sampled_from(sorted(caches)))].path)
    options = {
        "batch_size": data.draw(st.integers(1, 40)),
        "window": data.draw(st.integers(1, 6)),
        "threads": data.draw(st.integers(1, 4)),
    }
    roomy = joint(cache, **options)
    limit = data.draw(st.integers(roomy.memory_bytes // 2, roomy.memory_bytes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.reading.buffers._SMALL", 1)
        counted = Counted(patch)
        try:
            loader = joint(cache, memory_limit=limit, **options)
        except MemoryError:
            return
        assert loader.memory_bytes <= limit
        for epoch in range(2):
            for batch in loader.epoch(epoch):
                assert len(batch.index)
            del batch
        assert counted.peak <= loader.memory_bytes
        assert counted.now <= loader.feeds[""].held_bytes <= loader.memory_bytes
