"""The order of an epoch: rounds that keep examples of one sample apart."""

import numpy as np
import pytest
from cachekit import Sample, token_taps
from hypothesis import given, settings
from hypothesis import strategies as st
from onesource import OneSource

from cache import Cache
from cache.loading.order import draw_views, window_order


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 12), max_size=60),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 9),
)
def test_every_example_comes_once_and_the_seed_decides(samples, window, spread, seed):
    values = np.array(samples, np.int64)
    same = values if spread else None
    one, two = (
        window_order(values // 3, np.random.default_rng(seed), window, same) for _ in range(2)
    )
    assert sorted(one) == list(range(len(values)))
    assert np.array_equal(one, two)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_a_round_has_each_sample_once(captions, pictures, window, seed):
    samples = np.random.default_rng(seed).permutation(np.repeat(np.arange(pictures), captions))
    order = window_order(samples, np.random.default_rng(seed), window, samples)
    for number in range(captions):
        part = samples[order[number * pictures :][:pictures]]
        assert sorted(part) == list(range(pictures))


def test_uneven_numbers_spread_over_all_rounds():
    """As in MSVD, where a clip has between a few and 80 sentences: no thin rounds at the end."""
    counts = np.random.default_rng(0).integers(5, 81, 400)
    samples = np.repeat(np.arange(400), counts)
    order = window_order(samples, np.random.default_rng(1), 16, samples)
    batches = [samples[order[low : low + 64]] for low in range(0, len(samples) - 64, 64)]
    doubled = [64 - len(set(batch.tolist())) for batch in batches]
    rng = np.random.default_rng(2)
    shuffled = [64 - len(set(rng.choice(samples, 64, replace=False).tolist())) for _ in batches]
    assert np.mean(doubled) < np.mean(shuffled) / 2
    assert max(doubled) < 32


def test_rounds_meet_in_other_orders():
    """The pictures beside a picture are not the same ones in the next round."""
    samples = np.tile(np.arange(200), 2)
    order = samples[window_order(samples, np.random.default_rng(0), 4, samples)]
    first, second = order[:200].reshape(-1, 20), order[200:].reshape(-1, 20)
    shared = [max(len(set(a) & set(b)) for b in second) for a in first]
    assert max(shared) < 12


def test_caption_order_is_drawn_anew():
    samples = np.repeat(np.arange(50), 3)
    orders = [window_order(samples, np.random.default_rng([0, e]), 4, samples) for e in range(9)]
    firsts = np.stack([np.sort(order[:50]) % 3 for order in orders])
    assert len(np.unique(firsts, axis=0)) == 9


def test_views_are_drawn_evenly_and_apart():
    samples = np.arange(3000).reshape(1000, 3)
    drawn = draw_views(samples, 1, 0, 0)
    assert drawn.shape == (1000, 1)
    assert np.array_equal(drawn[:, 0] // 3, np.arange(1000))
    assert np.bincount(drawn[:, 0] % 3).min() > 250
    assert np.array_equal(drawn, draw_views(samples, 1, 0, 0))
    for other in (draw_views(samples, 2, 0, 0), draw_views(samples, 1, 1, 0)):
        assert 0.2 < (other == drawn).mean() < 0.5
    assert 0.2 < (draw_views(samples, 1, 0, 1) == drawn).mean() < 0.5


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_an_order_owes_nothing_to_the_packing_of_the_same_seed(tmp_path, seed):
    """Drawn from one stream, epoch 0 would go through the samples as they were permuted."""
    sample = Sample(lengths=[1] * 400, taps=token_taps(1), seed=seed, blocks_per_shard=8)
    cache = Cache.open(sample.write(tmp_path / "cache"))
    loader = OneSource(cache, np.arange(400), taps=None, batch_size=20, seed=seed, window=8)
    order = loader.order(0)
    place = np.argsort(cache.packed_order)[order]  # of the samples on the disk, as they come
    assert abs(np.corrcoef(place[:-1], place[1:])[0, 1]) < 0.9
    assert (np.diff(place) == 1).mean() < 0.1
    for batch in order.reshape(-1, 20):
        assert len(np.unique(cache.table.block[batch])) > 4  # mixes the blocks of its window
    views = np.arange(800).reshape(400, 2)
    drawn = draw_views(views, seed, 0, 0)[:, 0] % 2
    ranks = np.argsort(np.argsort(order))
    assert abs(np.corrcoef(drawn, ranks)[0, 1]) < 0.2
