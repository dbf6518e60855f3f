"""Training from a cache: it learns, repeats bit for bit, resumes exactly, and refuses clearly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stagekit import (
    TAPS,
    WIDTH,
    build_cache,
    cached,
    read_lines,
    settings,
    train_config,
    write_pairs,
)
from torch import nn

from cache import Cache
from pipeline.config import ConfigError
from pipeline.data import DataConfig, DataError, load_dataset
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.inputs import TextInput
from pipeline.report import report
from pipeline.run import Run, RunError
from pipeline.tasks import make_task
from pipeline.train import Diverged, TrainProgress, train
from pipeline.training.augment import add_noise, drop_tokens
from pipeline.training.build import (
    build_model,
    make_loader,
    make_optimizer,
    prepare,
    set_statistics,
)
from pipeline.training.checkpoint import read_checkpoint
from pipeline.training.ema import WeightAverage
from pipeline.training.samples import MissingInputs
from pipeline.training.schedule import rate_factor
from unipt.layers import StackedNorm

ROOT = Path(__file__).parents[2]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_it_learns_and_writes_a_run(tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    result = train(train_config(tmp_path), seen.append)
    assert result.metrics["dev"]["accuracy"] >= 0.9
    assert result.metrics["test"]["accuracy"] >= 0.9
    assert (seen[-1].epoch, seen[-1].batch, seen[-1].batches) == (3, 6, 6)
    assert seen[-1].eta == 0
    run = Run.open(result.path)
    assert run.taps == TAPS
    assert run.labels == ("bad", "good")
    assert run.info["cache"]["fingerprint"] == {"weights": "a"}
    assert [r["epoch"] for r in read_lines(result.path / "metrics.jsonl")] == [1, 2, 3]
    records = read_lines(result.path / "predictions_test.jsonl")
    assert len(records) == 24
    assert (
        np.mean([r["label"] == r["target"] for r in records]) == result.metrics["test"]["accuracy"]
    )
    assert all(abs(sum(r["confidence"]) - 1) < 1e-5 for r in records)
    model = run.model()
    assert sum(p.numel() for p in model.parameters()) == result.parameters
    assert not model.training


def test_the_same_seed_repeats_bit_for_bit(tmp_path: Path) -> None:
    extras = {"dropout": 0.3, "noise": 0.1, "token_drop": 0.2, "ema": 0.9}
    before = torch.get_rng_state()
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(train_config(tmp_path, out, seed=seed, **extras))
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = (weights(tmp_path / out) for out in "abc")
    assert equal(first, again)
    assert not equal(first, other)


def test_an_interruption_changes_nothing(tmp_path: Path) -> None:
    extras: dict[str, Any] = {"noise": 0.1, "dropout": 0.3, "ema": 0.9, "checkpoint_steps": 4}
    train(train_config(tmp_path, "whole", **extras))

    def stop(now: TrainProgress) -> None:
        if (now.epoch, now.batch) == (2, 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(train_config(tmp_path, "cut", **extras), stop)
    now = read_checkpoint(tmp_path / "cut" / "checkpoint.pt")["progress"]
    assert (now["epoch"], now["batch"], now["step"]) == (1, 2, 8)
    with pytest.raises(RunError, match="train again"):
        Run.open(tmp_path / "cut")
    resumed: list[TrainProgress] = []
    train(train_config(tmp_path, "cut", **extras), resumed.append)
    assert (resumed[0].epoch, resumed[0].batch) == (2, 3)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    curves = [read_lines(tmp_path / out / "metrics.jsonl") for out in ("whole", "cut")]
    for records in curves:
        for record in records:
            del record["seconds"]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_batches_bounded_by_tokens_resume_in_mid_epoch(tmp_path: Path, tier: str) -> None:
    """Also where an epoch has more batches, or fewer, than the first one."""
    extras = {"max_tokens": 24, "dropout": 0.3, "tier": tier, "checkpoint_steps": 1, "epochs": 4}
    whole: list[TrainProgress] = []
    train(train_config(tmp_path, "whole", **extras), whole.append)
    config = train_config(tmp_path, "cut", **extras)
    setup = prepare(config)
    lengths = setup.cache.lengths["tokens"][setup.splits["train"].samples]
    loader = make_loader(config, setup)
    for number in range(4):
        batches = [batch.index.numpy() for batch in loader.epoch(number)]
        assert sum(step.epoch == number + 1 for step in whole) == len(batches) > len(lengths) // 24
        assert all(lengths[index].sum() <= 24 or len(index) == 1 for index in batches)
        assert max(map(len, batches)) <= config.batch_size

    def stop(now: TrainProgress) -> None:
        if (now.epoch, now.batch) == (3, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, stop)
    resumed: list[TrainProgress] = []
    train(config, resumed.append)
    assert (resumed[0].epoch, resumed[0].batch) == (3, 5)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert min(step.eta for step in whole) >= 0


SLOW = """
import json, os, sys, time
from pathlib import Path
from pipeline.train import TrainConfig, train
def report(now):
    if now.epoch == 2 and now.batch == 3:
        Path(sys.argv[2]).write_text("now")
        time.sleep(60)
train(TrainConfig.build(json.loads(sys.argv[1])), report)
"""


def test_kill_9_in_mid_epoch_changes_nothing(tmp_path: Path) -> None:
    extras: dict[str, Any] = {"dropout": 0.3, "checkpoint_steps": 1}
    train(train_config(tmp_path, "whole", **extras))
    values = settings(tmp_path, "cut", **extras)
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", SLOW, json.dumps(values), str(mark)]
    child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 120
        while not mark.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert mark.exists()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (tmp_path / "cut" / "run.json").exists()
    resumed: list[TrainProgress] = []
    train(train_config(tmp_path, "cut", **extras), resumed.append)
    assert (resumed[0].epoch, resumed[0].batch) == (2, 4)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "cut" / "model.safetensors"
    ).read_bytes()


def test_a_finished_run_is_kept(tmp_path: Path) -> None:
    first = train(train_config(tmp_path))
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    again = train(train_config(tmp_path))
    assert again.reused
    assert again.metrics == first.metrics
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(RunError, match="finished run of another configuration"):
        train(train_config(tmp_path, lr=1e-4))


def test_an_unfinished_run_of_another_configuration_is_refused(tmp_path: Path) -> None:
    def stop(now: TrainProgress) -> None:
        if now.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(train_config(tmp_path), stop)
    with pytest.raises(RunError, match="another configuration"):
        train(train_config(tmp_path, batch_size=8))


def test_missing_inputs_are_counted_and_shown(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    with (tmp_path / "rows.tsv").open("a") as file:
        file.write("".join(f"good stranger {i}\tgood\n" for i in range(40)))
    with pytest.raises(MissingInputs, match=r"\d+ of \d+ inputs .*'good stranger") as error:
        train(config)
    assert f"Extract a cache with {tmp_path / 'rows.tsv'}" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_divergence_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="Lower lr"):
        train(train_config(tmp_path, lr=1e30, warmup=0.0, clip=0.0, epochs=5))


def test_early_stopping_and_best_epoch(tmp_path: Path) -> None:
    result = train(train_config(tmp_path, epochs=30, patience=2, lr=1e-2))
    history = Run.open(result.path).info["history"]
    values = [record["dev"]["accuracy"] for record in history]
    assert result.epochs == len(history) == result.best_epoch + 2
    assert values.index(max(values)) == result.best_epoch - 1


def test_the_last_fit_takes_the_dev_rows_too_and_keeps_its_last_epoch(tmp_path: Path) -> None:
    usual = Run.open(train(train_config(tmp_path)).path)
    data = settings(tmp_path)["data"] | {"fit_on_dev": True}
    result = train(train_config(tmp_path, "last", data=data))
    run = Run.open(result.path)
    counts = usual.info["examples"]
    assert run.info["examples"] == {
        "train": counts["train"] + counts["dev"],
        "test": counts["test"],
    }
    assert result.best_epoch == result.epochs == 3
    assert set(result.metrics) == {"test"}
    assert result.metrics["test"]["accuracy"] >= 0.9
    with pytest.raises(DataError, match="no examples in the split 'dev'"):
        evaluate(EvaluateConfig(run=result.path, split="dev"))
    assert (tmp_path / "pictures" / "learning.png") in report(result.path, tmp_path / "pictures")
    with pytest.raises(ConfigError, match="patience needs a dev split"):
        train_config(tmp_path, data=data, patience=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16", "preset": "clip_vil"},
        {"schedule": "step", "class_weights": "balanced", "label_smoothing": 0.1},
        {"schedule": "linear", "pooling": "mean", "input_norm": "none", "tier": "disk"},
        {"schedule": "constant", "pooling": "max", "input_norm": "layer", "taps": ["layer.*"]},
    ],
)
def test_options_learn(tmp_path: Path, changes: dict[str, Any]) -> None:
    result = train(train_config(tmp_path, epochs=4, **changes))
    assert result.metrics["dev"]["accuracy"] >= 0.9
    assert result.epochs == 4


def test_tensorboard_writes_curves(tmp_path: Path) -> None:
    train(train_config(tmp_path, epochs=1, tensorboard=True))
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("pair", ["joint", "separate"])
def test_pair_regression_reports_in_the_units_of_the_target(tmp_path: Path, pair: str) -> None:
    data = {
        "task": "regression", "train": str(write_pairs(tmp_path / "pairs.csv")), "pair": pair,
        "text": "a", "text_pair": "b", "label": "score",
    }  # fmt: skip
    cached(tmp_path, data)
    result = train(train_config(tmp_path, data=data, epochs=15, dropout=0.0, lr=1e-2))
    assert result.metrics["test"]["pearson"] > 0.7
    records = read_lines(result.path / "predictions_test.jsonl")
    errors = [abs(r["score"] - r["target"]) for r in records]
    assert np.mean(errors) == pytest.approx(result.metrics["test"]["mae"], abs=1e-5)
    assert np.mean(errors) < 1.0
    # the saved model itself gives the target's units
    run = Run.open(result.path)
    cache = Cache.open(tmp_path / "cache")
    dataset = load_dataset(run.data)
    example = dataset.examples("test")[0]
    keys = np.frombuffer(b"".join(x.key() for x in example.inputs), np.uint8).reshape(-1, 16)
    samples = cache.find(keys)
    read = cache.read(samples, run.taps)
    lengths = torch.from_numpy(cache.lengths["tokens"][samples])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    states = torch.stack([read[tap].float() for tap in run.taps])
    score = run.model()(states, offsets=offsets).logits.item()
    assert score == pytest.approx(records[0]["score"], abs=1e-4)


def test_training_and_probing_never_import_transformers(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "sys.modules['transformers'] = None\n"
        "from pathlib import Path\n"
        "from pipeline.train import TrainConfig, train\n"
        "from pipeline.evaluate import EvaluateConfig, evaluate\n"
        "from pipeline.probe import probe\n"
        "from pipeline import report\n"
        "config = TrainConfig.build(json.loads(sys.argv[1]))\n"
        "train(config); evaluate(EvaluateConfig(run=config.out, resamples=2))\n"
        "probe(config, 'last', resamples=2)\n"
        "assert sys.modules['transformers'] is None\n"
    )
    command = [sys.executable, "-c", code, json.dumps(settings(tmp_path, epochs=1))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_bad_options_are_listed_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        train_config(tmp_path, lr=-1, schedule="cubic", epoch=3)
    assert "3 problem(s)" in str(error.value)
    with pytest.raises(ValueError, match=r"matches none of embeddings, layer\.0, layer\.1"):
        train(train_config(tmp_path, taps=["encoder.*"]))
    with pytest.raises(ValueError, match="'mdetr' is not one for sentences; choose from text"):
        train(train_config(tmp_path, preset="mdetr"))
    with pytest.raises(ValueError, match="at least two taps"):
        train(train_config(tmp_path, taps=["layer.1"]))


def test_weight_decay_spares_norms_and_biases(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    model = build_model(config, prepare(config))
    optimizer = make_optimizer(model, config)
    decayed, plain = (group["params"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [config.weight_decay, 0.0]
    assert len(decayed) + len(plain) == len(list(model.parameters()))
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm | StackedNorm)]
    spared = {id(p) for norm in norms for p in norm.parameters()}
    spared |= {id(p) for name, p in model.named_parameters() if name.endswith("bias")}
    assert {id(p) for p in plain} == spared


def test_statistics_are_those_of_the_training_states(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    setup = prepare(config)
    model = build_model(config, setup)
    set_statistics(model, make_loader(config, setup))
    read = setup.cache.read(setup.splits["train"].samples, setup.tap_names)
    linear = model.side.target_down.linear
    buffers = dict(linear.named_buffers())
    mean, scale = buffers[f"mean_{WIDTH}"], buffers[f"scale_{WIDTH}"]
    for number, tap in enumerate(setup.tap_names[:-1]):
        states = read[tap].double()
        torch.testing.assert_close(mean[number].double(), states.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            scale[number].double(), states.std(0, correction=0), atol=1e-5, rtol=1e-5
        )


def test_schedules() -> None:
    def course(**options: Any) -> list[float]:
        return [rate_factor(step, 100, **options) for step in range(100)]

    cosine = course(schedule="cosine", warmup=0.1)
    assert cosine[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[99] < 0.001
    linear = course(schedule="linear", warmup=0.0)
    assert linear[25] == pytest.approx(0.75)
    step = course(schedule="step", warmup=0.0, step_at=0.6)
    assert (step[59], step[60]) == (1.0, 0.1)
    assert set(course(schedule="constant", warmup=0.0)) == {1.0}
    assert rate_factor(103, 100, schedule="linear", warmup=0.0) == 0.0
    assert rate_factor(103, 100, schedule="cosine", warmup=0.0) == pytest.approx(0.0)


def test_noise_is_scaled_by_feature_and_tokens_are_dropped_but_the_first() -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 4000, 4) * torch.tensor([1.0, 1.0, 1.0, 100.0])
    noise = add_noise(states, 0.1) - states
    assert noise[1, :, 0].std() == pytest.approx(0.1, rel=0.08)
    assert noise[0, :, 3].std() == pytest.approx(10.0, rel=0.08)
    offsets = torch.tensor([0, 1, 1000, 1002, 4000])
    numbered = torch.arange(4000.0).repeat(2, 1)[..., None]
    kept, bounds = drop_tokens(numbered, offsets, 0.4)
    assert kept.shape[1] == bounds[-1]
    assert kept.shape[1] == pytest.approx(2400, rel=0.05)
    assert (bounds[1:] > bounds[:-1]).all()
    assert torch.equal(kept[0, bounds[:-1], 0], offsets[:-1].float())
    for low, high, begin, end in zip(
        bounds[:-1], bounds[1:], offsets[:-1], offsets[1:], strict=True
    ):
        part = kept[0, low:high, 0]
        assert ((part >= begin) & (part < end)).all()


def test_the_average_follows_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.5)
    nn.init.ones_(model.weight)
    expected = 0.0
    for number in range(12):
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay)
        average.update(model)
    assert average.weights["weight"].item() == pytest.approx(expected)
    with average.applied(model):
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 1.0


def test_losses_by_hand(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    dataset = load_dataset(config.data)
    logits, targets = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 0])
    log = torch.log_softmax(logits, 1)
    plain = make_task(dataset).loss(logits, targets)
    assert plain == pytest.approx(-(log[0, 1] + log[1, 0]).item() / 2)
    smooth = make_task(dataset, label_smoothing=0.2).loss(logits, targets)
    wanted = -(0.9 * log[0, 1] + 0.1 * log[0, 0] + 0.9 * log[1, 0] + 0.1 * log[1, 1]) / 2
    assert smooth.item() == pytest.approx(wanted.item())
    with pytest.raises(ValueError, match="balanced class weights: no training row of third"):
        named = DataConfig.build(
            {"train": config.data.train, "label_names": ("bad", "good", "third")}
        )
        make_task(load_dataset(named), class_weights="balanced")


def test_a_cache_of_other_inputs_is_no_match(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    other = build_cache(tmp_path / "other", [TextInput("good day"), TextInput("bad day")])
    with pytest.raises(MissingInputs, match="not in the cache"):
        train(config.model_copy(update={"cache": other}))
