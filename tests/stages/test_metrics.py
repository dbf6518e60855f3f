"""Metrics against hand-made numbers; intervals that are seeded and cover."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data import Example, Labelled
from pipeline.inputs import TextInput
from pipeline.tasks.base import PerExample
from pipeline.tasks.classification import Classification
from pipeline.tasks.metrics import CLASSIFICATION, REGRESSION, better, bootstrap, check_metrics
from unipt import Outputs

KINDS = {"classification": CLASSIFICATION, "regression": REGRESSION}


def judged(kind: str, names: Sequence[str], targets: Any, predictions: Any) -> PerExample:
    scorers = {name: KINDS[kind][name] for name in names}
    described: list[dict[str, Any]] = [{} for _ in predictions]
    return PerExample(targets, predictions, scorers, described)


def score(kind: str, names: Sequence[str], targets: Any, predictions: Any) -> dict[str, float]:
    return judged(kind, names, targets, predictions).metrics()


def test_classification_metrics_by_hand() -> None:
    targets = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    predictions = np.array([1, 1, 0, 0, 0, 1, 0, 1])
    found = score("classification", ("accuracy", "f1", "matthews"), targets, predictions)
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["f1"] == pytest.approx(2 * 0.75 * 0.75 / 1.5)
    assert found["matthews"] == pytest.approx((3 * 3 - 1 * 1) / (4 * 4))


def test_the_right_class_is_among_the_five_most_likely() -> None:
    logits = torch.zeros(4, 7)
    logits[0] = torch.arange(7.0)  # class 2 is the fifth, 1 the sixth
    logits[1] = torch.arange(7.0)
    logits[2] = torch.tensor([0.0, 1, 1, 1, 1, 1, 1])  # six as likely: no tie helps
    logits[3] = torch.nan
    examples = [Example(str(t), (TextInput(str(t)),), t) for t in (2, 1, 3, 0)]
    task = Classification([f"c{n}" for n in range(7)], metrics=["accuracy", "top5_accuracy"])
    judged = task.judge([Outputs({"logits": logits})], Labelled(examples, ("text",)))
    for row, wanted in enumerate([1.0, 0.0, 0.0, 0.0]):
        assert judged.metrics(np.array([row]))["top5_accuracy"] == wanted
    assert judged.metrics()["top5_accuracy"] == 0.25
    assert list(judged.metrics()) == ["accuracy", "top5_accuracy"]


def test_regression_metrics_by_hand() -> None:
    targets = np.array([1.0, 2.0, 3.0, 4.0])
    predictions = np.array([1.0, 4.0, 9.0, 16.0])
    found = score("regression", ("pearson", "spearman", "mse", "mae"), targets, predictions)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(np.corrcoef(targets, predictions)[0, 1])
    assert found["mse"] == pytest.approx((0 + 4 + 36 + 144) / 4)
    assert found["mae"] == pytest.approx((0 + 2 + 6 + 12) / 4)


def test_a_constant_prediction_explains_nothing() -> None:
    ones, targets = np.ones(5), np.arange(5.0)
    assert score("regression", ("pearson", "spearman"), targets, ones) == {
        "pearson": 0.0, "spearman": 0.0,
    }  # fmt: skip
    assert score("classification", ("matthews", "f1"), np.array([0, 1]), np.array([0, 0])) == {
        "matthews": 0.0, "f1": 0.0,
    }  # fmt: skip


def test_the_interval_is_the_binomial_one_and_repeats() -> None:
    targets = np.ones(400, np.int64)
    predictions = (np.arange(400) % 5 > 0).astype(np.int64)  # 80 % right
    split = judged("classification", ("accuracy",), targets, predictions)
    first, again, other = (bootstrap([split], seed=seed)["accuracy"] for seed in (3, 3, 4))
    assert first == again
    assert first != other
    width = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert first.value == pytest.approx(0.8)
    assert first.low == pytest.approx(0.8 - width, abs=0.006)
    assert first.high == pytest.approx(0.8 + width, abs=0.006)


def test_several_models_are_drawn_together_for_the_mean_of_their_metrics() -> None:
    targets = np.ones(40, np.int64)
    right = np.arange(40) % 2 == 0
    one, two = (
        judged("classification", ("accuracy",), targets, mask.astype(np.int64))
        for mask in (right, ~right)
    )
    both = bootstrap([one, two])["accuracy"]
    assert (both.low, both.value, both.high) == (0.5, 0.5, 0.5)  # each draw has one or the other
    assert bootstrap([one, one]) == bootstrap([one])


def test_a_split_with_hidden_targets_has_no_metrics() -> None:
    assert bootstrap([judged("classification", ("accuracy",), None, np.zeros(4, np.int64))]) == {}


def test_without_resamples_an_interval_has_no_width() -> None:
    split = judged("regression", ("mse",), np.arange(3.0), np.zeros(3))
    found = bootstrap([split], resamples=0)["mse"]
    assert found.low == found.value == found.high == pytest.approx(5 / 3)


def test_choosing_the_best() -> None:
    assert better("accuracy", 0.6, 0.5)
    assert not better("accuracy", 0.5, 0.5)
    assert better("mse", 0.4, 0.5)
    assert better("mse", 9.0, None)
    assert not better("accuracy", float("nan"), None)


def test_unknown_metrics_are_listed() -> None:
    with pytest.raises(ValueError, match=r"unknown metric\(s\) bleu; known: accuracy, f1"):
        check_metrics(("accuracy", "bleu"), CLASSIFICATION)
