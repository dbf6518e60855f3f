"""A sweep from end to end: rungs, survivors, failures, what is kept, what is never looked at."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from stagekit import write_rows
from sweepkit import outcome, studied, sweep_config

from pipeline.config import ConfigError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.run import Run
from pipeline.sweep import SweepError, SweepResult, sweep
from pipeline.sweep.folder import read_config
from pipeline.sweep.halving import survivors
from pipeline.sweep.runs import trial_config, trial_run
from pipeline.sweep.trainer import Trainer
from pipeline.train import train
from pipeline.training.setup import assign_folds


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def result(place: Path) -> SweepResult:
    """Nine trials, rungs after epochs 1 and 3, of which 3 and 1 trials go on."""
    return sweep(sweep_config(place, together=None))


def test_rungs_keep_the_best_and_the_others_stop(result):
    ended = [(trial["epochs"], trial["rung"]) for trial in result.trials]
    assert sorted(ended) == [(1, 0)] * 6 + [(3, 1)] * 2 + [(4, 2)]
    first = {t["number"]: t["curve"][0] for t in result.trials}
    assert [t["number"] for t in result.trials if t["rung"]] == survivors(first, 3)
    (best,) = [t for t in result.trials if t["state"] == "complete"]
    assert result.best == best["number"]
    assert result.params == best["params"]
    assert [(r["start"], r["stop"], r["trials"], r["epochs"]) for r in result.rungs] == [
        (0, 1, 9, 9),
        (1, 3, 3, 6),
        (3, 4, 1, 1),
    ]


def test_only_the_best_keep_their_weights(place, result):
    states = [path.parent.name for path in (place / "sweep" / "trials").rglob("seed0-fold0-*")]
    assert states == [f"{result.best:05}"]


def test_optuna_has_the_whole_study(place, result):
    trials = studied(place / "sweep")
    assert [t[0] for t in trials] == list(range(9))
    names = {"complete": "COMPLETE", "pruned": "PRUNED"}
    for (_, params, state, value, scores), row in zip(trials, result.trials, strict=True):
        assert (params, state.name) == (row["params"], names[row["state"]])
        assert list(scores.values()) == row["curve"]
        assert value == row["score"]


def test_a_sweep_that_is_done_is_read_again(place, result):
    again = sweep(sweep_config(place, together=None))
    assert again.trials == result.trials
    assert again.refit.reused


def test_the_best_run_is_the_very_training_that_won(place, result):
    kept, best = (
        Run.open(path) for path in (trial_run(place / "sweep", result.best), result.refit.path)
    )
    weights = [run.model().state_dict() for run in (kept, best)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert best.info["metrics"] == kept.info["metrics"]
    assert best.info["metrics"]["dev"]["accuracy"] == result.trials[result.best]["score"]


def test_another_sweep_in_the_folder_is_refused(place, result):
    with pytest.raises(SweepError, match=r"trials: 9 before, 10 now"):
        sweep(sweep_config(place, together=None, trials=10))
    with pytest.raises(SweepError, match=r"epochs: 4 before, 5 now"):
        sweep(sweep_config(place, together=None, epochs=5))


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.txt").write_text("hello")
    with pytest.raises(SweepError, match="is in use and holds no sweep"):
        sweep(sweep_config(tmp_path))


def test_the_kept_trial_is_a_run_and_the_same_as_trained_alone(place, result):
    kept = Run.open(trial_run(place / "sweep", result.best))
    alone = train(trial_config(place / "sweep", result.best, place / "alone"))
    assert kept.info["best_epoch"] == alone.best_epoch
    assert kept.info["metrics"] == alone.metrics
    assert kept.info["identity"] == Run.open(alone.path).info["identity"]
    weights = [run.model().state_dict() for run in (kept, Run.open(alone.path))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    tested = result.tested[result.best]["accuracy"]
    found = evaluate(EvaluateConfig(run=kept.path)).metrics["accuracy"]
    assert tested == found


def test_a_stopped_trial_has_no_weights_but_can_be_trained(place, result):
    pruned = next(t for t in result.trials if t["state"] == "pruned")
    with pytest.raises(SweepError, match="only the best keep theirs"):
        trial_run(place / "sweep", pruned["number"])
    alone = train(trial_config(place / "sweep", pruned["number"], place / "pruned"))
    assert alone.epochs == 4
    history = Run.open(place / "pruned").info["history"]
    assert history[0]["dev"]["accuracy"] == pruned["curve"][0]
    with pytest.raises(SweepError, match=r"has the trials 0 .. 8, not 9"):
        trial_run(place / "sweep", 9)


def test_the_last_fit_is_an_ordinary_run_of_the_best_point(place, result):
    best = Run.open(place / "sweep" / "best")
    settings = {name: best.info["config"][name] for name in result.params}
    assert settings == result.params
    assert evaluate(EvaluateConfig(run=best.path)).metrics


def test_the_table_has_the_best_trial_and_the_cost(result):
    told = result.render()
    assert "9 trials (1 complete, 8 pruned), 16 epochs" in told
    assert f"\n{result.best} " in told
    assert "9 trainings share each read of the caches, as there are 9" in told
    json.dumps(result.to_dict())


def test_hyperband_trains_its_brackets_side_by_side(tmp_path):
    told = []
    config = sweep_config(tmp_path, trials=5, pruner="hyperband", epochs=3, refit="none", keep=2)
    result = sweep(config, lambda now: told.append(now.describe()))
    ended = [(trial["epochs"], trial["state"]) for trial in result.trials]
    assert sorted(ended[:3]) == [(1, "pruned"), (1, "pruned"), (3, "complete")]
    assert ended[3:] == [(3, "complete")] * 2  # the bracket without rungs
    assert len(result.ranked) == 2
    assert "0 of 5 trials ended, 5 in training" in told[0]
    assert "at epoch 1, batch 1 of" in told[0]
    assert f"best dev accuracy {result.trials[result.best]['score']:.4f}" in told[-1]


def test_a_diverging_trial_fails_alone(tmp_path):
    config = sweep_config(
        tmp_path,
        space={"lr": [1e-2, 1e30, 2e-2]},
        sampler="grid",
        trials=None,
        clip=0.0,
        warmup=0.0,
    )
    result = sweep(config)
    assert [trial["number"] for trial in result.trials if trial["state"] == "failed"] == [1]
    assert result.best in (0, 2)
    assert "diverged" in result.trials[1]["reason"]
    assert result.trials[1]["score"] is None


def test_seeds_count_by_their_mean(tmp_path):
    config = sweep_config(tmp_path, trials=3, seeds=2, pruner="none", epochs=2, seed=7)
    result = sweep(config)
    one = result.trials[0]
    scores = []
    for seed in (7, 8):
        run = trial_config(config.out, 0, tmp_path / f"seed{seed}")
        history = train(run.model_copy(update={"seed": seed})).path
        scores.append(max(r["dev"]["accuracy"] for r in Run.open(history).info["history"]))
    assert one["score"] == sum(scores) / 2


def test_folds_divide_the_training_rows_and_keep_equal_inputs_together(tmp_path):
    config = sweep_config(tmp_path, folds=5)
    trainer = Trainer(config)
    train = trainer.whole(config.run).splits["train"]
    doubled = train.take(np.array([*range(len(train)), *range(10)]))
    parts = assign_folds(doubled, 5, 0)
    assert (parts[:10] == parts[-10:]).all()
    setups = [trainer.setup(config.run, fold) for fold in range(5)]
    held, trained = (
        [setup.splits[name].clean["text"].tolist() for setup in setups] for name in ("dev", "train")
    )
    assert sorted(n for part in held for n in part) == sorted(train.clean["text"].tolist())
    for mine, rest in zip(held, trained, strict=True):
        assert not set(mine) & set(rest)
    with pytest.raises(ConfigError, match="take fewer folds"):
        assign_folds(train.take(np.arange(3)), 4, 0)


def test_cross_validation_chooses_and_the_last_fit_takes_all_rows(tmp_path):
    config = sweep_config(tmp_path, folds=3, trials=3, epochs=2, refit="train+dev")
    result = sweep(config)
    assert result.best is not None
    assert not result.tested
    counts = Run.open(tmp_path / "sweep" / "best").info["examples"]
    assert set(counts) == {"train", "test"}
    with pytest.raises(SweepError, match="those of folds"):
        trial_run(tmp_path / "sweep", result.best)


def test_the_test_split_never_chooses(tmp_path):
    """Wrong labels in the test file change no trial and no winner."""
    results = []
    for number, classes in enumerate((("bad", "good"), ("good", "bad"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = write_rows(folder / "test.tsv", 20).read_text()
        swap = dict(zip(("bad", "good"), classes, strict=True))
        lines = [line.split("\t") for line in rows.splitlines()]
        lines = [lines[0], *([text, swap[label]] for text, label in lines[1:])]
        config = sweep_config(folder, refit="none", trials=6, keep=1)
        (folder / "test.tsv").write_text("\n".join("\t".join(line) for line in lines) + "\n")
        data = config.run.data.model_copy(update={"test": folder / "test.tsv"})
        run = config.run.model_copy(update={"data": data})
        results.append(sweep(config.model_copy(update={"run": run})))
    first, second = (outcome(result.path) for result in results)
    assert first == second
    scores = [result.tested[result.best]["accuracy"].value for result in results]
    assert sum(scores) == pytest.approx(1.0)


def test_short_trials_keep_their_place_while_they_are_good(tmp_path):
    config = sweep_config(
        tmp_path, space={"epochs": [1, 4], "lr": [1e-2]}, sampler="grid", trials=None, eta=2
    )
    result = sweep(config)
    assert all(t["state"] in ("complete", "pruned") for t in result.trials)
    short = result.trials[0]
    assert (short["epochs"], short["state"]) == (1, "complete")


def test_the_configuration_survives_in_the_folder(place, result):
    config = read_config(place / "sweep", workers=3)
    assert config.workers == 3
    assert config.run == sweep_config(place).run.model_copy(update={"out": place / "sweep"})
