"""Sweeps over two towers: the study of any sweep, and the training of `train`, trial by trial."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pairkit import pair_config, settings
from safetensors.torch import load_file
from sweepkit import begin, outcome, studied, units

import cli
from pipeline.config import ConfigError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.run import Run
from pipeline.sweep import SweepConfig, SweepResult, sweep
from pipeline.sweep.halving import survivors
from pipeline.sweep.report import report_sweep
from pipeline.sweep.runs import trial_config, trial_run
from pipeline.sweep.trainer import Trainer
from pipeline.systems import inference, kernel, two_towers
from pipeline.systems.memo import Memo
from pipeline.tasks.metrics import bootstrap
from pipeline.tasks.ranking import RankedSplit
from pipeline.tasks.ranks import Ranks
from pipeline.train import train
from pipeline.training.job import make_model
from pipeline.training.setup import assign_folds, prepare
from unipt import Outputs
from unipt.bases import KernelRows

SPACE = {"lr": "log:1e-3..3e-2", "text_side_width": "4,8", "kernel_gamma": "0.5,1"}


def pair_sweep(
    folder: Path, out: str = "sweep", layout: str = "grid", **changes: Any
) -> SweepConfig:
    values = settings(folder, layout, out, epochs=3, embed_width=None, ema=0.5)
    values |= {"space": SPACE, "trials": 4, "sampler": "random", "eta": 2, "keep": 2}
    return SweepConfig.build(values | changes)


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(cli.commands, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(path / "model.safetensors") for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def result(place: Path) -> SweepResult:
    """Four trials, rungs after epochs 1 and 2, of which 2 and 1 trials go on."""
    return sweep(pair_sweep(place))


def test_rungs_keep_the_best_and_the_others_stop(result):
    ended = [(trial["epochs"], trial["rung"], trial["state"]) for trial in result.trials]
    assert sorted(ended) == [(1, 0, "pruned")] * 2 + [(2, 1, "pruned"), (3, 2, "complete")]
    first = {t["number"]: t["curve"][0] for t in result.trials}
    assert [t["number"] for t in result.trials if t["rung"]] == survivors(first, 2)
    assert result.metric == "rsum"
    assert all(t["bytes_read"] > 0 for t in result.trials)
    assert "4 trainings share each read of the caches, as there are 4" in result.render()


def test_a_trial_that_was_trained_from_rung_to_rung_is_what_train_makes(place, result):
    kept = Run.open(trial_run(place / "sweep", result.best))
    alone = train(trial_config(place / "sweep", result.best, place / "alone"))
    assert same_weights(kept.path, alone.path)
    assert same_weights(kept.path, place / "sweep" / "best")
    assert kept.info["metrics"] == alone.metrics
    assert kept.info["identity"] == Run.open(alone.path).info["identity"]
    tested = result.tested[result.best]
    assert tested == {"rsum": evaluate(EvaluateConfig(run=kept.path)).metrics["rsum"]}


def test_a_stopped_trial_can_be_trained_by_its_name(place, result):
    pruned = next(t for t in result.trials if t["state"] == "pruned")
    name = f"{place / 'sweep'}:{pruned['number']}"
    invoke("train", "--from-trial", name, place / "pruned", "--checkpoint-steps", 3)
    info = Run.open(place / "pruned").info
    assert {key: info["config"][key] for key in pruned["params"]} == pruned["params"]
    assert info["history"][0]["dev"]["rsum"] == pruned["curve"][0]


def test_the_page_draws_both_towers(place, result):
    page = report_sweep(place / "sweep").read_text(encoding="utf-8")
    assert "4 trials of retrieval" in page
    assert "<h2>Layers of the winner, text tower</h2>" in page
    assert "<h2>Layers of the winner, media tower</h2>" in page
    assert f"{result.trials[result.best]['score']:.1f}" in page


def test_killed_within_an_epoch_it_is_the_same_study(tmp_path):
    changes = {"trials": 2, "epochs": 9, "min_epochs": 8, "checkpoint_steps": 1, "refit": "none"}
    changes |= {"together": 1}
    whole = sweep(pair_sweep(tmp_path, "whole", **changes))
    config = pair_sweep(tmp_path, "killed", **changes)
    process = begin(config)
    try:
        while not list((config.out / "trials").rglob("*-epoch8")) and process.poll() is None:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert units(config.out) < 1
    sweep(config)
    assert outcome(config.out) == outcome(whole.path)
    assert studied(config.out) == studied(whole.path)
    assert whole.tested == sweep(config).tested


def test_folds_keep_the_items_of_a_group_together(tmp_path):
    config = pair_sweep(tmp_path, folds=3)
    trainer = Trainer(config)
    train = trainer.whole(config.run).splits["train"]
    parts = assign_folds(train, 4, 0)
    assert all(len(set(parts[n : n + 2])) == 1 for n in range(0, len(parts), 2))
    assert set(parts) == set(range(4))
    held = [trainer.setup(config.run, fold).splits for fold in range(3)]
    items = [item.id for splits in held for item in splits["dev"].examples.items]
    assert sorted(items) == sorted(item.id for item in train.examples.items)
    for splits in held:
        assert set(splits) == {"train", "dev"}
        trained, left = splits["train"].examples, splits["dev"].examples
        assert not {*trained.items} & {*left.items}
        for part in (trained, left):
            owners = [part.items[n].id for n in part.item_of]
            assert [caption.id.partition("#")[0] for caption in part.captions] == owners


def test_cross_validation_and_seeds_count_by_their_mean(tmp_path):
    config = pair_sweep(tmp_path, folds=2, seeds=2, trials=1, epochs=1, refit="train+dev")
    result = sweep(config)
    records = [json.loads(file.read_text()) for file in (config.out / "units").glob("*.json")]
    scores = [c["history"][0]["dev"]["rsum"] for r in records for c in r["histories"]]
    assert len(scores) == 4
    assert result.trials[0]["score"] == pytest.approx(np.mean(scores))
    assert not result.tested
    assert set(Run.open(config.out / "best").info["examples"]) == {"train", "test"}


def test_trials_that_fail_do_not_end_the_sweep(tmp_path):
    space = {"lr": [1e-2, 1e30], "text_options": [{}, {"nonsense": 1}]}
    config = pair_sweep(
        tmp_path, space=space, sampler="grid", trials=None, clip=0.0, warmup=0.0, epochs=2
    )
    result = sweep(config)
    states = [trial["state"] for trial in result.trials]
    assert states == ["complete", "failed", "failed", "failed"]
    assert "nonsense" in result.trials[1]["reason"]
    assert "diverged" in result.trials[2]["reason"]
    assert "remove" not in result.trials[2]["reason"]
    assert sweep(config).trials == result.trials


def test_nothing_that_chooses_has_the_test_split(tmp_path):
    config = pair_sweep(tmp_path)
    trainer = Trainer(config)
    assert set(trainer.setup(config.run).splits) == {"train", "dev"}
    assert set(trainer.whole(config.run).splits) == {"train", "dev", "test"}


def test_what_is_fitted_is_fitted_once_for_all_that_want_the_same(tmp_path, monkeypatch):
    read, measured = [], []
    infer, of = inference.infer, KernelRows.of
    for module in (kernel, two_towers):
        monkeypatch.setattr(module, "infer", lambda *a, **b: read.append(1) or infer(*a, **b))
    monkeypatch.setattr(KernelRows, "of", lambda *given: measured.append(1) or of(*given))
    config, memo = pair_config(tmp_path, embed_width=None), Memo()

    def fitted(memo: Memo, **changes: Any) -> Any:
        changed = config.model_copy(update=changes)
        return make_model(changed, prepare(changed, memo))

    whole = fitted(memo)
    assert len(read) == 2  # the captions and the items
    same = fitted(memo, lr=0.5, text_side_width=4, dropout=0.0)
    sharper = fitted(memo, kernel_gamma=3.0)
    assert len(read) == 2
    assert len(measured) == 1
    alone = fitted(Memo(), kernel_gamma=3.0)
    assert len(read) == 4
    for one, two in ((same, whole), (sharper, alone)):
        first, second = one.media.base.state_dict(), two.media.base.state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)
        norms = [tower.text.side.target_down.linear.state_dict() for tower in (one, two)]
        assert any("mean" in name for name in norms[0])
        means = [[v for k, v in norm.items() if "mean" in k] for norm in norms]
        assert all(torch.equal(a, b) for a, b in zip(*means, strict=True))
    assert not torch.equal(whole.media.base.values, sharper.media.base.values)


def test_several_runs_are_resampled_together(tmp_path):
    random = np.random.default_rng(0)
    examples = prepare(pair_config(tmp_path)).splits["train"].examples
    captions, items = len(examples), len(examples.items)

    def judged() -> RankedSplit:
        ranks = Ranks(random.integers(0, items, captions), random.integers(0, captions, items))
        empty = Outputs({})
        return RankedSplit(
            examples=examples, text=empty, media=empty, ranks=ranks, m2t_over="captions", folds=1
        )

    pair = [judged(), judged()]
    both = bootstrap(pair, resamples=50)["rsum"]
    each = [bootstrap([one], resamples=50)["rsum"] for one in pair]
    assert both.value == pytest.approx(np.mean([one.value for one in each]))
    assert bootstrap([pair[0]] * 3, resamples=50)["rsum"].low == pytest.approx(each[0].low)


def test_what_cannot_be_searched_is_told_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="the tap pattern 'nothing' of media_taps matches none"):
        sweep(pair_sweep(tmp_path, space={"media_taps": [["*"], ["nothing"]]}))
    with pytest.raises(ConfigError, match=r"tokens, patches and frames can be dropped"):
        sweep(pair_sweep(tmp_path, layout="vector", space={"media_drop": "0..0.5"}))
    with pytest.raises(ConfigError, match="recipe: is the same for all trials"):
        sweep(pair_sweep(tmp_path, space={"recipe": ["default", "clip4clip"]}))
    with pytest.raises(ConfigError, match=r"37 folds of 36 groups of training examples"):
        sweep(pair_sweep(tmp_path, folds=37))
    assert not (tmp_path / "sweep").exists()


def test_the_command_takes_both_caches(place, result):
    values = json.loads((place / "sweep" / "sweep.json").read_text())["config"]
    (place / "run.json").write_text(json.dumps(values | {"trials": 4}))
    told = json.loads(invoke("sweep", "--config", place / "run.json", "--json"))
    assert told["refit"]["reused"]
    again = invoke("sweep", "--resume", "--out", place / "sweep")
    assert "test rsum" in again
    shown = invoke("sweep", "--task", "retrieval", "--help")
    assert "TEXT_CACHE" in shown.upper()
    assert shown.count("--folds ") == 1
    assert os.fspath(place / "sweep" / "best") in again
