"""Batches bounded by tokens, loaders of several ranks, threads, and the memory of batches."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from cachekit import Counted, Sample, token_taps
from hypothesis import given, settings
from hypothesis import strategies as st
from onesource import OneSource

from cache import Cache, CacheDamaged, Loader, Source, TapSpec
from cache.loading.order import Limits, cut_batches, rank_parts
from cache.reading.buffers import BatchBuffers

RNG = np.random.default_rng(11)
LENGTHS = (*RNG.integers(0, 12, 119).tolist(), 63)
SAMPLE = Sample(
    lengths=LENGTHS, taps=[*token_taps(), TapSpec(name="pooled", kind="vector", shape=(5,))]
)
TAPS = ["tokens.layer.2", "tokens.layer.0"]
LENGTH = np.array(LENGTHS)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "cache.reading.block_store.SHARE", 100
        )  # several threads copy even a small batch
        yield Cache.open(SAMPLE.write(tmp_path_factory.mktemp("batches") / "cache"))


def loader(cache, samples=None, **extra):
    samples = np.arange(SAMPLE.n) if samples is None else samples
    return OneSource(
        cache, samples, **({"taps": TAPS, "batch_size": 8, "seed": 5, "window": 3} | extra)
    )


def numbers(batches):
    return [(batch.index.tolist(), batch.values.clone()) for batch in batches]


def same(one, two):
    assert [index for index, _ in one] == [index for index, _ in two]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, two, strict=True))


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_bound_any_rank_any_threads(opened, data):
    """Every example comes once over all ranks, within its bounds, in an order that is fixed."""
    segments = data.draw(st.sampled_from([1, 2]))
    n = data.draw(st.integers(0, 60))
    samples = np.random.default_rng(n).integers(0, SAMPLE.n, (n, segments))
    world = data.draw(st.integers(1, 4))
    most = data.draw(st.one_of(st.none(), st.integers(1, 90)))
    options = {
        "batch_size": data.draw(st.integers(1, 9)),
        "max_tokens": most,
        "world": world,
        "shuffle": data.draw(st.booleans()),
        "window": data.draw(st.integers(1, 4)),
        "drop_last": data.draw(st.booleans()),
    }
    epoch = data.draw(st.integers(0, 3))
    tokens = LENGTH[samples].sum(1)
    counts, seen = set(), []
    for rank in range(world):
        tier = data.draw(st.sampled_from(["host", "disk"]))
        threads = data.draw(st.integers(1, 4))
        batches = loader(opened, samples, rank=rank, tier=tier, threads=threads, **options)
        whole = numbers(batches.epoch(epoch))
        counts.add(len(whole))
        assert len(whole) == batches.count(epoch)
        for index, values in whole:
            assert 1 <= len(index) <= options["batch_size"]
            assert most is None or tokens[index].sum() <= most or len(index) == 1
            wanted = samples[index].T.reshape(-1)
            expected = [SAMPLE.values(SAMPLE.taps[i], wanted) for i in (2, 0)]
            assert torch.equal(values.float(), torch.stack(expected))
        start = data.draw(st.integers(0, len(whole) + 1))
        again = loader(opened, samples, rank=rank, tier="disk", threads=1, **options)
        same(whole[start:], numbers(again.epoch(epoch, start_batch=start)))
        seen += [i for index, _ in whole for i in index]
    assert len(counts) == 1
    assert len(seen) == len(set(seen))
    if most is None and not options["drop_last"]:
        assert n - len(seen) < world
    if world == 1 and not options["drop_last"]:
        assert sorted(seen) == list(range(n))


def test_ranks_take_runs_of_the_order_of_one(opened):
    """Blocks are read by one rank each, but for those at the ends of the runs."""
    alone = loader(opened).order(1)
    runs = [
        [i for batch in loader(opened, rank=rank, world=3).epoch(1) for i in batch.index.tolist()]
        for rank in range(3)
    ]
    assert [i for run in runs for i in run] == alone[:120].tolist()
    assert {len(run) for run in runs} == {40}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 30), max_size=40),
    st.integers(1, 12),
    st.integers(1, 60),
    st.integers(1, 5),
    st.booleans(),
)
def test_cuts_are_greedy_and_shares_are_even(rows, size, most, world, drop):
    rows = np.array(rows, np.int64)
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    limits = Limits(examples=size, rows=most)
    batches = cut_batches(order, rows, limits)
    assert np.array_equal(np.concatenate([order[:0], *batches]), order)
    for batch, following in pairwise(batches):
        full = len(batch) == size or rows[batch].sum() + rows[following[0]] > most
        assert full
    kept = cut_batches(order, rows, limits, drop_last=drop)
    assert len(batches) - len(kept) in ({0, 1} if drop else {0})
    parts = rank_parts(order, rows, world)
    assert np.array_equal(np.concatenate(parts), order)
    heavy = [rows[part].sum() for part in parts]
    assert max(heavy) - min(heavy) <= 2 * (rows.max(initial=0) + 1)


def test_memory_is_planned_by_the_bound(opened):
    free = loader(opened, batch_size=64)
    bound = loader(opened, batch_size=64, max_tokens=70)
    loose = loader(opened, batch_size=64, max_tokens=10**9)
    assert bound.memory_bytes < free.memory_bytes == loose.memory_bytes
    assert len(bound) > len(free)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_never_more_memory_than_stated_under_any_bound(opened, data):
    """Blocks held, and batches: those ready, in work, kept to be used again, and the caller's."""
    limits = {
        "batch_size": data.draw(st.integers(1, 40)),
        "max_tokens": data.draw(st.one_of(st.none(), st.integers(1, 300))),
        "tier": data.draw(st.sampled_from(["host", "disk"])),
        "threads": data.draw(st.integers(1, 3)),
        "taps": data.draw(st.sampled_from([TAPS, ["pooled"]])),
    }
    if limits["taps"] == ["pooled"]:
        limits["max_tokens"] = None
    fresh = Cache.open(opened.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.reading.buffers._SMALL", 1)  # keep even the smallest buffers
        counted = Counted(patch)
        batches = loader(fresh, **limits)
        feed = batches.joint.feeds[""]
        beside = feed.held_bytes - feed.block_bytes * batches.joint.memory.capacities[0]
        for epoch in range(2):
            for batch in batches.epoch(epoch):
                assert len(batch.index)
            del batch
        assert counted.now <= feed.held_bytes  # nothing else outlives an epoch
        assert counted.peak - beside <= batches.memory_bytes


def test_bounds_count_the_tokens_of_all_sources(opened):
    samples = np.arange(40)
    sources = {
        name: Source(cache=opened, samples=samples, taps=taps)
        for name, taps in {"a": TAPS, "b": ["tokens.layer.1"], "c": ["pooled"]}.items()
    }
    joint = Loader(sources, batch_size=40, seed=0, max_tokens=50)
    for batch in joint.epoch(0):
        tokens = sum(int(batch.parts[name].offsets["tokens"][-1]) for name in "ab")
        assert tokens == 2 * LENGTH[samples[batch.index]].sum()
        assert tokens <= 50
    with pytest.raises(ValueError, match="max_tokens needs taps with tokens"):
        loader(opened, taps=["pooled"], max_tokens=50)


def test_wrong_numbers_are_refused(opened):
    for extra in ({"max_tokens": 0}, {"threads": 0}, {"batch_size": 0}, {"window": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            loader(opened, **extra)
    for rank, world in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="from 0 to world"):
            loader(opened, rank=rank, world=world)


def wide(tmp_path, n=40):
    """A cache whose batches are large enough for their memory to be kept."""
    sample = Sample(lengths=[9] * n, taps=token_taps(2, width=512), block_tokens=40)
    return sample, Cache.open(sample.write(tmp_path / "wide"))


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_a_batch_is_its_holders_alone(tmp_path, tier):
    sample, cache = wide(tmp_path)
    batches = OneSource(cache, np.arange(40), taps=None, batch_size=8, seed=0, tier=tier)
    for epoch in range(2):
        held = []
        for batch in batches.epoch(epoch):
            held.append((batch.index, batch.values[1, 3:]))  # a view keeps the memory
            batch.values[0].fill_(-1)  # and writing harms nobody
            del batch
        assert len({values.data_ptr() for _, values in held}) == len(held)
        for index, values in held:
            assert torch.equal(values.float(), sample.values(sample.taps[1], index.tolist())[3:])


def test_memory_of_batches_that_are_gone_is_taken_again(tmp_path):
    _, cache = wide(tmp_path)
    batches = OneSource(cache, np.arange(40), taps=None, batch_size=4, seed=0, tier="host")
    places = []
    for epoch in range(2):
        places.append([batch.values.data_ptr() for batch in batches.epoch(epoch)])
    assert len(places[1]) == 10
    assert len(set(places[1])) <= 4


def test_a_workbench_keeps_no_more_than_it_may():
    bench = BatchBuffers(most_rows=100, keep=2)
    shape = (2, 50, 512)
    alive = [bench.room(shape, torch.float16) for _ in range(5)]
    assert len({tensor.data_ptr() for tensor in alive}) == 5
    assert all(tensor.shape == shape and tensor.dtype == torch.float16 for tensor in alive)
    places = {tensor.data_ptr() for tensor in alive}
    del alive
    again = [bench.room((2, 100, 512), torch.float16) for _ in range(4)]
    assert len(places & {tensor.data_ptr() for tensor in again}) >= 2
    (kept,) = bench._free.values()
    del again
    assert len(kept) == 2


def test_one_bad_block_among_several_threads(tmp_path):
    """The first error is raised when all threads are done, and what was good can be read after."""
    sample = Sample(lengths=[9] * 40, taps=token_taps(), blocks_per_shard=8)
    path = sample.write(tmp_path / "cache")
    cache = Cache.open(path)
    (stack,) = cache.geometry.stacks
    shard = path / cache.geometry.shard_path(stack, 1)
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    before = threading.active_count()
    batches = OneSource(cache, np.arange(40), taps=None, batch_size=40, seed=0, threads=4)
    for _ in range(2):
        with pytest.raises(CacheDamaged, match=r"tokens\.layer\.0 of block 8"):
            list(batches.epoch(0))
    assert threading.active_count() == before
    good = np.flatnonzero(cache.table.block != 8)
    kept = OneSource(cache, good, taps=None, batch_size=40, seed=0, shuffle=False)
    (batch,) = kept.epoch(0)
    assert torch.equal(batch.values[0].float(), sample.values(sample.taps[0], good))


@pytest.mark.parametrize("wrong", [None, 0, 3, 8])
def test_every_job_is_done_once_and_all_have_ended_before_an_error(wrong):
    done = []

    def job(number):
        done.append(number)
        if number == wrong:
            raise CacheDamaged(f"job {number}")

    with ThreadPoolExecutor(3) as readers:
        bench = BatchBuffers(readers=readers)
        jobs = [partial(job, number) for number in range(9)]
        failing = pytest.raises(CacheDamaged, match=f"job {wrong}")
        with nullcontext() if wrong is None else failing:
            bench.run(jobs)
        ended = len(done)
    assert len(done) == ended == len(set(done))
    assert wrong is not None or ended == 9
