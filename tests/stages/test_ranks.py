"""Ranks of a retrieval: hand-worked cases, a naive version, folds, ties, intervals, and memory."""

import subprocess
import sys
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reading.captioned.dataset import Captioned
from pipeline.reading.captioned.gather import Caption, MediaItem
from pipeline.tasks.metrics import Interval, bootstrap
from pipeline.tasks.ranking import RankedSplit, Ranking
from pipeline.tasks.ranks import (
    EmbeddingError,
    Ranks,
    chance,
    folded,
    rank_all,
    summarize,
)
from unipt import Outputs


def ranks_of(scores: list[list[float]], item_of: list[int], **options: Any) -> tuple[list, list]:
    """Rank captions (rows) and items (columns) of these scores."""
    text = torch.tensor(scores)
    ranks = rank_all(text, torch.eye(text.shape[1]), torch.tensor(item_of), **options)
    return ranks.text_to_media.tolist(), ranks.media_to_text.tolist()


def naive(text: np.ndarray, media: np.ndarray, item_of: np.ndarray, over: str) -> tuple:
    """The definition, one candidate after the other."""
    scores = text @ media.T
    t2m = [
        sum(scores[j, i] >= scores[j, own] for i in range(len(media)) if i != own)
        for j, own in enumerate(item_of)
    ]
    m2t = []
    for i in range(len(media)):
        best = max(scores[j, i] for j in range(len(text)) if item_of[j] == i)
        rivals = [j for j in range(len(text)) if item_of[j] != i and scores[j, i] >= best]
        m2t.append(len(rivals) if over == "captions" else len({item_of[j] for j in rivals}))
    return t2m, m2t


SCORES = [  # captions 0, 1 of item 0; 2 of item 1; 3, 4, 5 of item 2
    [0.9, 0.2, 0.1],
    [0.3, 0.8, 0.7],
    [0.5, 0.6, 0.1],
    [0.95, 0.7, 0.2],
    [0.1, 0.0, 0.6],
    [0.99, 0.0, 0.3],
]
OWNERS = [0, 0, 1, 2, 2, 2]


def test_several_captions_an_item_by_hand():
    # Item 0's best caption (.9) has .95 and .99 before it, both of item 2: two captions, one item.
    # Item 1's only one (.6) has .8 of item 0 and .7 of item 2. Item 2's best (.6) has .7.
    assert ranks_of(SCORES, OWNERS) == ([0, 2, 0, 2, 0, 1], [2, 2, 1])
    assert ranks_of(SCORES, OWNERS, m2t_over="items") == ([0, 2, 0, 2, 0, 1], [1, 2, 1])


def test_the_order_of_the_captions_does_not_matter():
    shuffled = [4, 0, 2, 5, 1, 3]
    scores, owners = [SCORES[j] for j in shuffled], [OWNERS[j] for j in shuffled]
    for over, expected in (("captions", [2, 2, 1]), ("items", [1, 2, 1])):
        t2m, m2t = ranks_of(scores, owners, m2t_over=over)
        assert t2m == [[0, 2, 0, 2, 0, 1][j] for j in shuffled]
        assert m2t == expected


def test_ties_count_against_the_model():
    assert ranks_of([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0, 1, 2]) == (
        [1, 1, 0],
        [1, 1, 0],
    )
    collapsed = torch.ones(7, 4) / 2
    ranks = rank_all(collapsed, collapsed, torch.arange(7))
    assert set(ranks.text_to_media) == set(ranks.media_to_text) == {6}
    assert summarize(ranks)["t2m_r5"] == 0


def test_own_captions_never_stand_before_each_other():
    assert ranks_of([[1.0, 0.0], [1.0, 0.0], [0.5, 1.0]], [0, 0, 1])[1] == [0, 0]


def test_copies_tie_whatever_the_tile():
    """Equal vectors in other tiles and at other columns score within float32's rounding."""
    torch.manual_seed(0)
    media = torch.nn.functional.normalize(torch.randn(40, 333), dim=1).repeat(5, 1)  # five copies
    text = torch.nn.functional.normalize(media + 0.01 * torch.randn(200, 333), dim=1)
    for block in (1, 7, 64, 1000):
        assert (rank_all(text, media, torch.arange(200), block=block).text_to_media == 4).all()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    items=st.integers(1, 9),
    extra=st.integers(0, 14),
    block=st.integers(1, 12),
    over=st.sampled_from(["captions", "items"]),
)
def test_any_block_agrees_with_the_definition(seed, items, extra, block, over):
    random = np.random.default_rng(seed)
    item_of = random.permutation(np.r_[np.arange(items), random.integers(0, items, extra)])
    text = random.integers(-2, 3, (len(item_of), 4)).astype(np.float32)  # many exact ties
    media = random.integers(-2, 3, (items, 4)).astype(np.float32)
    ranks = rank_all(torch.tensor(text), torch.tensor(media), item_of, m2t_over=over, block=block)
    t2m, m2t = naive(text, media, item_of, over)
    assert ranks.text_to_media.tolist() == t2m
    assert ranks.media_to_text.tolist() == m2t


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_is_ranked_in_float32(dtype):
    text, media = torch.randn(30, 8).to(dtype), torch.randn(10, 8).to(dtype)
    item_of = torch.arange(30) // 3
    ranks = rank_all(text, media, item_of)
    wide = rank_all(text.float(), media.float(), item_of.int())
    assert (ranks.text_to_media == wide.text_to_media).all()
    assert (ranks.media_to_text == wide.media_to_text).all()


def test_summary_by_hand():
    ranks = Ranks(np.array([0, 2, 0, 2, 0, 11]), np.array([2, 5, 1]))
    assert summarize(ranks) == pytest.approx(
        {
            "t2m_r1": 50.0, "t2m_r5": 500 / 6, "t2m_r10": 500 / 6,
            "t2m_median_rank": 2.0, "t2m_mean_rank": 3.5,
            "m2t_r1": 0.0, "m2t_r5": 200 / 3, "m2t_r10": 100.0,
            "m2t_median_rank": 3.0, "m2t_mean_rank": 8 / 3 + 1,
            "rsum": 50 + 2 * 500 / 6 + 200 / 3 + 100,
        }
    )  # fmt: skip


def test_a_perfect_retrieval_has_rsum_600():
    summary = summarize(rank_all(torch.eye(12), torch.eye(12), torch.arange(12)))
    assert summary["rsum"] == 600
    assert summary["t2m_median_rank"] == summary["m2t_mean_rank"] == 1


def test_folds_are_retrievals_of_their_own():
    """COCO 1K: consecutive items, each fold among its own captions, metrics averaged."""
    torch.manual_seed(1)
    text, media, item_of = torch.randn(100, 6), torch.randn(20, 6), torch.arange(100) // 5
    parts = [
        summarize(
            rank_all(text[25 * f : 25 * f + 25], media[5 * f : 5 * f + 5], torch.arange(25) // 5)
        )
        for f in range(4)
    ]
    result = folded(text, media, item_of, 4)
    assert result == pytest.approx({k: np.mean([part[k] for part in parts]) for k in parts[0]})
    assert folded(text, media, item_of, 1) == summarize(rank_all(text, media, item_of))
    assert result["t2m_r10"] == 100  # only five candidates in a fold


def test_a_fold_may_be_larger_by_one_item():
    assert folded(torch.eye(7), torch.eye(7), torch.arange(7), 3)["rsum"] == 600


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": torch.full((4, 3), torch.nan)}, "4 of 4 caption embeddings are not finite"),
        ({"media": torch.tensor([[torch.inf] * 3, [1.0] * 3])}, "1 of 2 media embeddings"),
        ({"media": torch.ones(2, 5)}, "must be"),
        ({"item_of": torch.tensor([0, 0, 1])}, "must be 4 integers"),
        ({"item_of": torch.tensor([0.0, 0, 1, 1])}, "float32"),
        ({"item_of": torch.tensor([0, 0, 1, 2])}, r"items 0 \.\. 1"),
        ({"item_of": torch.tensor([0, 0, 1, -1])}, r"items 0 \.\. 1"),
        ({"item_of": torch.tensor([0, 0, 0, 0])}, "1 of 2 media have no caption"),
        ({"block": 0}, "block must be at least 1"),
    ],
)
def test_what_cannot_be_ranked_is_refused(change, message):
    values = {"text": torch.ones(4, 3), "media": torch.ones(2, 3)}
    values |= {"item_of": torch.tensor([0, 0, 1, 1])} | change
    with pytest.raises(EmbeddingError, match=message):
        rank_all(**values)
    values.pop("block", None)
    with pytest.raises(EmbeddingError):
        folded(**values, folds=3)


def captioned(item_of: np.ndarray) -> Captioned:
    items = tuple(MediaItem(f"item {n}", Path(f"{n}.png")) for n in range(item_of.max() + 1))
    captions = tuple(Caption(f"caption {n}", f"text {n}") for n in range(len(item_of)))
    return Captioned(items, captions, item_of, tuple(item.id for item in items), "test")


def intervals(ranks: Ranks, item_of: np.ndarray, **options: Any) -> dict[str, Interval]:
    nothing = Outputs({})
    judged = RankedSplit(captioned(item_of), nothing, nothing, ranks, "captions", folds=1)
    return bootstrap([judged], **options)


def test_bootstrap_draws_items_with_their_captions():
    """Two items, one all right and one all wrong: the draws give 0, the share, or 1."""
    ranks = Ranks(np.array([0, 0, 0, 20]), np.array([0, 20]))
    item_of = np.array([0, 0, 0, 1])
    result = intervals(ranks, item_of, resamples=400)
    assert (result["t2m_r1"].value, result["m2t_r1"].value) == (75, 50)
    assert (result["t2m_r1"].low, result["t2m_r1"].high) == (0, 100)
    assert (result["rsum"].low, result["rsum"].high) == (0, 600)
    assert result["rsum"].value == summarize(ranks)["rsum"]
    half = intervals(ranks, item_of, resamples=400, level=0.2)
    assert (half["m2t_r1"].low, half["m2t_r1"].high) == (50, 50)
    assert half == intervals(ranks, item_of, resamples=400, level=0.2)
    alone = intervals(ranks, item_of, resamples=0)["t2m_r1"]
    assert alone.low == alone.value == alone.high == 75


def test_the_interval_narrows_with_the_items():
    def width(items: int) -> float:
        random = np.random.default_rng(0)
        ranks = Ranks(random.integers(0, 2, items), random.integers(0, 2, items))
        interval = intervals(ranks, np.arange(items))["t2m_r1"]
        return interval.high - interval.low

    assert width(1000) < 0.5 * width(100)
    assert width(1000) == pytest.approx(2 * 1.96 * 100 * 0.5 / np.sqrt(1000), rel=0.15)


@pytest.mark.parametrize("over", ["captions", "items"])
def test_a_ranking_is_judged_by_the_protocol(over: Any) -> None:
    """The metrics, the extras and the records are those of the ranks; drawn items weigh theirs."""
    torch.manual_seed(2)
    item_of = np.repeat(np.arange(6), [2, 1, 3, 1, 2, 3])
    text, media = torch.randn(12, 4), torch.randn(6, 4)
    confidence = torch.tensor([[0.25, 0.75]]).expand(12, 2)
    outputs = [Outputs({"text": text}, confidence={"text": confidence}), Outputs({"media": media})]
    judged = Ranking(m2t_over=over, folds=2).judge(outputs, captioned(item_of))
    ranks = rank_all(text, media, item_of, m2t_over=over)
    whole = summarize(ranks)
    assert (len(judged), judged.unit) == (6, "items")
    assert next(iter(judged.metrics())) == "rsum"
    assert judged.metrics() == {k: v for k, v in whole.items() if not k.endswith("_rank")}
    parts = folded(text, media, item_of, 2, m2t_over=over)
    assert judged.extras() == {k: v for k, v in whole.items() if k.endswith("_rank")} | {
        f"mean_of_2_folds_{name}": value for name, value in parts.items()
    }
    drawn = np.array([5, 5, 2, 0])
    captions = np.concatenate([np.flatnonzero(item_of == item) for item in drawn])
    some = judged.metrics(drawn)
    assert some["t2m_r1"] == pytest.approx(100 * np.mean(ranks.text_to_media[captions] < 1))
    assert some["m2t_r5"] == pytest.approx(100 * np.mean(ranks.media_to_text[drawn] < 5))
    records = {name: list(rows) for name, rows in judged.records().items()}
    assert records["predictions"][4] == {
        "id": "caption 4", "item": "item 2", "rank": ranks.text_to_media[4] + 1,
        "confidence": [0.25, 0.75],
    }  # fmt: skip
    assert records["items"][3] == {"id": "item 3", "rank": ranks.media_to_text[3] + 1}


def test_chance_is_the_mean_over_every_order():
    own = [1, 3, 2]
    item_of = np.repeat(np.arange(3), own)
    result = chance(item_of)
    for k in (1, 5):
        found = [
            np.mean([bool(np.isin(np.flatnonzero(item_of == i), top).any()) for top in _tops(6, k)])
            for i in range(3)
        ]
        assert result[f"m2t_r{k}"] == pytest.approx(100 * np.mean(found))
    orders = list(permutations(range(6)))
    best = [
        np.mean([min(order.index(j) for j in np.flatnonzero(item_of == i)) + 1 for order in orders])
        for i in range(3)
    ]
    assert result["m2t_mean_rank"] == pytest.approx(np.mean(best))
    assert result["m2t_r10"] == result["t2m_r5"] == 100
    assert result["t2m_r1"] == pytest.approx(100 / 3)
    assert chance(item_of, m2t_over="items")["m2t_r1"] == pytest.approx(100 / 3)
    assert chance(np.arange(408))["t2m_r1"] == pytest.approx(0.245, abs=1e-3)


def _tops(count: int, k: int) -> list[tuple[int, ...]]:
    return list(combinations(range(count), k))


def test_memory_is_bounded_by_the_tile():
    """16,384 x 16,384 scores are 1 GiB; ranking them may not add a tenth of that."""
    code = """
import resource, torch
from pipeline.tasks.ranks import rank_all
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
text, media, own = torch.randn(16384, 4), torch.randn(16384, 4), torch.arange(16384)
rank_all(text[:64], media[:64], own[:64])
before = peak()
ranks = rank_all(text, media, own, m2t_over="items")
assert ranks.text_to_media.max() < 16384
print(peak() - before)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * 2**20
