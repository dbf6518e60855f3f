"""Rungs and brackets, checked by hand."""

import math

import pytest

from pipeline.sweep.halving import Bracket, bracket_sizes, plan_brackets, rung_epochs, survivors


def test_rungs_are_eta_times_as_far_each():
    assert rung_epochs(1, 3, 27) == (1, 3, 9)
    assert rung_epochs(1, 3, 28) == (1, 3, 9, 27)
    assert rung_epochs(2, 2, 10) == (2, 4, 8)
    assert rung_epochs(10, 3, 10) == ()


def test_a_third_survives_each_rung_and_never_none():
    bracket = Bracket(tuple(range(20)), (1, 3, 9), 3)
    assert [bracket.kept(rung) for rung in range(3)] == [6, 2, 1]


def test_halving_is_one_bracket_and_none_has_no_rungs():
    settings = {"min_epochs": 1, "eta": 3, "epochs": 10}
    (halving,) = plan_brackets(range(4, 9), pruner="halving", **settings)
    assert halving == Bracket((4, 5, 6, 7, 8), (1, 3, 9), 3)
    (none,) = plan_brackets(range(4), pruner="none", **settings)
    assert none.rungs == ()


def test_hyperband_has_the_brackets_of_the_paper():
    # Li et al. 2018, table 1: R = 81, eta = 3
    assert bracket_sizes(4, 3) == [81, 34, 15, 8, 5]
    brackets = plan_brackets(range(143), pruner="hyperband", min_epochs=1, eta=3, epochs=81)
    assert [len(b.numbers) for b in brackets] == [81, 34, 15, 8, 5]
    assert [b.rungs for b in brackets] == [(1, 3, 9, 27), (3, 9, 27), (9, 27), (27,), ()]
    assert sorted(n for b in brackets for n in b.numbers) == list(range(143))


def test_hyperband_goes_round_until_the_trials_are_dealt_out():
    brackets = plan_brackets(range(12), pruner="hyperband", min_epochs=1, eta=3, epochs=3)
    # a round is 3 and 2 trials; the third one ends early
    assert [b.numbers for b in brackets] == [(0, 1, 2, 5, 6, 7, 10, 11), (3, 4, 8, 9)]
    assert [b.rungs for b in brackets] == [(1,), ()]


@pytest.mark.parametrize(
    ("scores", "kept", "lower", "expected"),
    [
        ({0: 0.5, 1: 0.9, 2: 0.7, 3: 0.8}, 2, False, [1, 3]),
        ({0: 0.5, 1: 0.9, 2: 0.7, 3: 0.8}, 2, True, [0, 2]),
        ({0: 0.7, 1: 0.9, 2: 0.7, 3: 0.7}, 2, False, [0, 1]),  # a tie: the lower number
        ({5: 0.7, 3: 0.7, 4: 0.7}, 2, True, [3, 4]),
        ({0: None, 1: 0.1, 2: math.nan, 3: None}, 3, False, [1]),  # failures leave places free
        ({0: None}, 1, False, []),
        ({0: math.inf, 1: 0.2}, 1, False, [1]),
    ],
)
def test_who_survives(scores, kept, lower, expected):
    assert survivors(scores, kept, lower_is_better=lower) == expected
