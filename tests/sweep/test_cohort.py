"""A trial in a cohort is the trial alone: losses, dev metrics, weights, whatever is beside it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from stagekit import train_config

from pipeline.sweep.cohort import CohortTrial, TrialOutcome, train_cohort
from pipeline.train import train
from pipeline.training.build import prepare
from pipeline.training.checkpoint import read_checkpoint
from pipeline.training.config import TrainConfig

CLOSE = {"rtol": 1e-3, "atol": 2e-5}
IDLE = "side.gate.bias"
"""A softmax ignores it: its gradient is rounding only, which Adam blows up to its full rate."""

VARIED: list[dict[str, Any]] = [
    {"lr": 1e-2, "seed": 1, "dropout": 0.0, "schedule": "cosine"},
    {"lr": 3e-3, "seed": 2, "dropout": 0.4, "weight_decay": 0.5, "schedule": "linear"},
    {"lr": 5e-3, "seed": 3, "ema": 0.9, "clip": 0.1, "schedule": "step", "beta2": 0.95},
    {"lr": 2e-3, "seed": 1, "clip": 0.0, "warmup": 0.0, "schedule": "constant", "dropout": 0.2},
    {"lr": 4e-3, "seed": 4, "label_smoothing": 0.2, "class_weights": "balanced", "epochs": 2},
]


def configs(tmp_path: Path, varied: list[dict[str, Any]], **common: Any) -> list[TrainConfig]:
    shared = {"order_seed": 5, **common}
    return [
        train_config(tmp_path, f"alone{number}", **(shared | own))
        for number, own in enumerate(varied)
    ]


def together(trials: list[TrainConfig], until: int = 99) -> list[TrialOutcome]:
    numbered = [CohortTrial(number=n, config=config) for n, config in enumerate(trials)]
    return train_cohort(numbered, prepare(trials[0]), until)


def assert_as_alone(config: TrainConfig, outcome: TrialOutcome) -> None:
    """Train the trial by itself, and compare what both recorded and kept."""
    train(config)
    state = read_checkpoint(config.out / "checkpoint.pt")
    alone, now = state["progress"], outcome.state.progress
    assert outcome.failed is None
    assert (now.epoch, now.step, now.stopped) == (alone["epoch"], alone["step"], alone["stopped"])
    assert now.best_epoch == alone["best_epoch"]
    for ours, theirs in zip(now.history, alone["history"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-6)
        assert ours["dev"] == pytest.approx(theirs["dev"], rel=1e-4, abs=1e-6)
        assert ours["lr"] == pytest.approx(theirs["lr"])
        assert (ours["epoch"], ours["step"]) == (theirs["epoch"], theirs["step"])
    pairs = (now.best_weights, alone["best_weights"]), (outcome.state.weights, state["model"])
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {IDLE}:
            torch.testing.assert_close(ours[name], theirs[name], **CLOSE)
    assert torch.equal(outcome.state.random, state["random"])


@pytest.mark.parametrize("own", range(len(VARIED)))
def test_rates_losses_dropout_and_averages(tmp_path: Path, own: int) -> None:
    trials = configs(tmp_path, VARIED)
    assert_as_alone(trials[own], together(trials)[own])
