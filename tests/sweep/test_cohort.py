"""A trial in a cohort is the trial alone: losses, dev metrics, weights, whatever is beside it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from stagekit import cached, train_config, write_pairs

from pipeline.config import ConfigError
from pipeline.run import Run
from pipeline.sweep.capacity import COPIES, cohort_capacity, measure_cohort
from pipeline.sweep.cohort import CohortTrial, TrialOutcome, shape_key, train_cohort
from pipeline.sweep.state import TrialState
from pipeline.train import Diverged, train
from pipeline.training.build import build_model, prepare
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


SHAPES: list[dict[str, Any]] = [
    {"preset": "vse_text", "pooling": "max", "noise": 0.2, "token_drop": 0.2},
    {"preset": "clip_vil", "pooling": "attention", "reduction": 2.0, "side_width": None},
    {"input_norm": "layer", "pooling": "first", "out_width": 4, "taps": ["layer.*"]},
    {"input_norm": "none", "pooling": "last", "patience": 1, "max_tokens": 30},
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_presets_poolings_noise_and_dropped_tokens(tmp_path: Path, shape: dict[str, Any]) -> None:
    own = [{"seed": 1, "dropout": 0.3}, {"seed": 2, "lr": 3e-3}]
    trials = configs(tmp_path, own, **shape)
    for config, outcome in zip(trials, together(trials), strict=True):
        assert_as_alone(config, outcome)


def test_pairs_and_scores(tmp_path: Path) -> None:
    data = {
        "train": str(write_pairs(tmp_path / "pairs.csv")),
        "text": "a",
        "text_pair": "b",
        "label": "score",
        "pair": "separate",
        "task": "regression",
    }
    cached(tmp_path, data)
    trials = configs(tmp_path, [{"seed": 1, "ema": 0.5}, {"lr": 2e-3, "epochs": 2}], data=data)
    for config, outcome in zip(trials, together(trials), strict=True):
        assert_as_alone(config, outcome)


def test_bfloat16_is_as_alone_within_its_rounding(tmp_path: Path) -> None:
    trials = configs(tmp_path, [{"seed": 1}, {"seed": 2}], precision="bfloat16", epochs=2)
    for config, outcome in zip(trials, together(trials), strict=True):
        alone = train(config)
        losses = [record["loss"] for record in Run.open(alone.path).info["history"]]
        assert [r["loss"] for r in outcome.history] == pytest.approx(losses, rel=0.05)


def test_a_neighbour_that_diverges_changes_nothing(tmp_path: Path) -> None:
    wild = {"lr": 1e30, "warmup": 0.0, "clip": 0.0, "seed": 3}
    trials = configs(tmp_path, [{"seed": 1}, wild, {"seed": 2, "dropout": 0.4}])
    first, failed, last = together(trials)
    assert failed.failed is not None
    assert failed.history == []
    with pytest.raises(Diverged) as error:
        train(trials[1])
    assert str(error.value).startswith(failed.failed.split(": loss")[0])
    assert all(value.isfinite().all() for value in failed.state.mean.values())
    assert_as_alone(trials[0], first)
    assert_as_alone(trials[2], last)


def test_cutting_out_and_regrouping_change_nothing(tmp_path: Path) -> None:
    varied = [{**own, "epochs": 3} for own in VARIED]
    trials = configs(tmp_path, varied)
    whole = together(trials)
    setup = prepare(trials[0])
    begun: dict[int, TrialOutcome] = {}
    for group, until in (((0, 1), 1), ((2, 3, 4), 1), ((0, 2, 4), 2), ((0, 4), 3), ((2,), 3)):
        members = []
        for number in group:
            state = None
            if number in begun:  # through a file, as another process would read it
                begun[number].state.save(tmp_path / f"{number}.safetensors")
                state = TrialState.load(tmp_path / f"{number}.safetensors")
            members.append(CohortTrial(number=number, config=trials[number], state=state))
        begun |= {done.number: done for done in train_cohort(members, setup, until)}
    for number in (0, 2, 4):
        now, then = begun[number].state, whole[number].state
        assert now.epoch == 3
        assert torch.equal(now.random, then.random)
        for ours, theirs in zip(now.progress.history, then.progress.history, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-6)
            assert ours["dev"] == pytest.approx(theirs["dev"])
        for kind in ("weights", "mean", "square"):
            ours, theirs = getattr(now, kind), getattr(then, kind)
            for name in ours.keys() - {IDLE}:
                torch.testing.assert_close(ours[name], theirs[name], **CLOSE)
    assert (begun[1].state.epoch, begun[3].state.epoch) == (1, 1)


def test_an_interruption_repeats_bit_for_bit(tmp_path: Path) -> None:
    trials = configs(tmp_path, [{"seed": 1, "ema": 0.9, "dropout": 0.3}, {"seed": 2}])
    setup = prepare(trials[0])
    whole = together(trials)
    half = together(trials, until=1)
    again = [
        CohortTrial(number=o.number, config=c, state=o.state)
        for o, c in zip(half, trials, strict=True)
    ]
    history = [list(outcome.history) for outcome in half]
    resumed = train_cohort(again, setup, {0: 3, 1: 3})
    assert [outcome.history for outcome in half] == history  # the given states stay as they were
    for first, second in zip(whole, resumed, strict=True):
        for kind in ("weights", "mean", "square"):
            ours, theirs = getattr(first.state, kind), getattr(second.state, kind)
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert first.state.bytes() == second.state.bytes()


def test_what_may_differ_within_a_shape(tmp_path: Path) -> None:
    one, other = configs(tmp_path, [VARIED[0], VARIED[4]])
    assert shape_key(one) == shape_key(other)
    changes = (
        {"side_width": 4},
        {"batch_size": 8},
        {"noise": 0.1},
        {"order_seed": 6},
        {"max_tokens": 50},
    )
    for change in changes:
        (different,) = configs(tmp_path, [{**VARIED[0], **change}])
        assert shape_key(different) != shape_key(one)


def test_refusals(tmp_path: Path) -> None:
    trials = configs(tmp_path, [{}, {"pooling": "max"}])
    setup = prepare(trials[0])
    with pytest.raises(ConfigError, match="2 shapes"):
        together(trials)
    with pytest.raises(ConfigError, match="at least one"):
        train_cohort([], setup, 1)
    (begun,) = together(trials[:1], until=1)
    mixed = [
        CohortTrial(number=0, config=trials[0], state=begun.state),
        CohortTrial(number=1, config=trials[0]),
    ]
    with pytest.raises(ConfigError, match="at one epoch"):
        train_cohort(mixed, setup, 2)
    path = tmp_path / "state.safetensors"
    begun.state.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="damaged"):
        TrialState.load(path)
    save_file({"random": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="format"):
        TrialState.load(path)


def test_the_size_of_a_cohort_has_a_reason(tmp_path: Path) -> None:
    (config,) = configs(tmp_path, [{}])
    setup = prepare(config)
    one = measure_cohort(config, setup, 1)
    assert (one.trials, one.examples) == (1, 16)
    parameters = sum(p.numel() for p in build_model(config, setup).parameters())
    assert one.weight_bytes == 4 * parameters
    assert cohort_capacity(config, setup, wanted=1)[1].startswith("1 trials together, as there are")
    tight = COPIES * one.weight_bytes  # of one trial
    count, reason = cohort_capacity(config, setup, wanted=8, memory_limit=tight)
    assert count == 1
    assert "2 would need" in reason
    count, reason = cohort_capacity(config, setup, wanted=4)
    assert count in (1, 2, 4)
    assert reason.startswith(f"{count} trials together, as")
