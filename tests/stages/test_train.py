"""Training from caches, whatever the system: it repeats bit for bit, resumes exactly, and refuses.

What is one system's own is in `test_texts_train` and `test_two_towers_train`.
"""

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
from stagekit import read_lines
from systemkit import CASES, EACH, TEXTS, TOWERS, same_weights
from torch import nn

from pipeline.config import ConfigError
from pipeline.data import DataError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.run import Run, RunError
from pipeline.systems import Setup
from pipeline.systems.memo import Memo
from pipeline.tasks.base import Moment
from pipeline.train import Diverged, TrainConfig, TrainProgress, train
from pipeline.training.checkpoint import read_checkpoint
from pipeline.training.ema import WeightAverage
from pipeline.training.job import make_model, make_optimizer, training_states
from pipeline.training.schedule import rate_factor
from pipeline.training.setup import make_loader, prepare
from pipeline.training.statistics import set_statistics
from unipt.layers import StackedNorm

ROOT = Path(__file__).parents[2]
each_system = pytest.mark.parametrize("name", EACH.values())


def interrupted(config: TrainConfig, epoch: int, batch: int) -> None:
    """Train until a step, and be interrupted there."""

    def stop(now: TrainProgress) -> None:
        if (now.epoch, now.batch) == (epoch, batch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, stop)


@each_system
def test_the_same_seed_repeats_bit_for_bit(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    case.config(tmp_path)  # its first use extracts, and loading a backbone may draw weights
    before = torch.get_rng_state()
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(case.config(tmp_path, out, seed=seed, epochs=2, **case.noisy))
    assert torch.equal(before, torch.get_rng_state())
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


@each_system
def test_an_interruption_changes_nothing(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    extras = case.noisy | {"checkpoint_steps": 3, "epochs": 3}
    train(case.config(tmp_path, "whole", **extras))
    config = case.config(tmp_path, "cut", **extras)
    batches = len(make_loader(config, prepare(config)))
    interrupted(config, 2, batches - 1)
    steps = 3 * ((2 * batches - 1) // 3)
    now = read_checkpoint(tmp_path / "cut" / "checkpoint.pt")["progress"]
    assert (now["epoch"], now["batch"], now["step"]) == (1, steps - batches, steps)
    with pytest.raises(RunError, match="train again"):
        Run.open(tmp_path / "cut")
    resumed: list[TrainProgress] = []
    torch.rand(7)  # nothing hangs on what others draw meanwhile
    train(config, resumed.append)
    assert (resumed[0].epoch, resumed[0].batch) == (2, steps - batches + 1)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    curves = [read_lines(tmp_path / out / "metrics.jsonl") for out in ("whole", "cut")]
    for records in curves:
        for record in records:
            del record["seconds"]
    assert curves[0] == curves[1]


def tokens_of(setup: Setup) -> np.ndarray:
    """Return the tokens that each training example counts in a batch, of all ragged towers."""
    train_split, total = setup.splits["train"], 0
    for tower, taps in setup.taps.items():
        if taps.axis is not None:
            lengths = setup.caches[tower].lengths[taps.axis]
            total = np.maximum(total, lengths[train_split.samples[tower]].max(1))
    return np.asarray(total)


@pytest.mark.parametrize("tier", ["host", "disk"])
@each_system
def test_batches_bounded_by_tokens_resume_in_mid_epoch(
    tmp_path: Path, name: str, tier: str
) -> None:
    """Also where an epoch has more batches, or fewer, than the first one."""
    case = CASES[name]
    extras = {"max_tokens": 24, "dropout": 0.3, "tier": tier, "checkpoint_steps": 1, "epochs": 4}
    setup = prepare(case.config(tmp_path))
    if not any(taps.axis for taps in setup.taps.values()):
        with pytest.raises(ConfigError, match="the caches hold states of fixed shape"):
            train(case.config(tmp_path, "whole", **extras))
        return
    whole: list[TrainProgress] = []
    train(case.config(tmp_path, "whole", **extras), whole.append)
    config = case.config(tmp_path, "cut", **extras)
    lengths = tokens_of(setup)
    loader = make_loader(config, setup)
    for number in range(4):
        batches = [batch.index.numpy() for batch in loader.epoch(number)]
        assert sum(step.epoch == number + 1 for step in whole) == len(batches) > len(lengths) // 24
        assert all(lengths[index].sum() <= 24 or len(index) == 1 for index in batches)
        assert max(map(len, batches)) <= config.batch_size
    interrupted(config, 3, 4)
    resumed: list[TrainProgress] = []
    train(config, resumed.append)
    assert (resumed[0].epoch, resumed[0].batch) == (3, 5)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert min(step.eta for step in whole) >= 0


SLOW = """
import json, os, sys, time
from pathlib import Path
from pipeline.train import train, train_config
def report(now):
    if now.epoch == 2 and now.batch == 3:
        Path(sys.argv[2]).write_text("now")
        time.sleep(60)
train(train_config(json.loads(sys.argv[1])), report)
"""


def test_kill_9_in_mid_epoch_changes_nothing(tmp_path: Path) -> None:
    case = CASES[EACH[TEXTS]]
    extras: dict[str, Any] = {"dropout": 0.3, "checkpoint_steps": 1}
    train(case.config(tmp_path, "whole", **extras))
    values = case.values(tmp_path, "cut", **extras)
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
    train(case.config(tmp_path, "cut", **extras), resumed.append)
    assert (resumed[0].epoch, resumed[0].batch) == (2, 4)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "cut" / "model.safetensors"
    ).read_bytes()


@each_system
def test_a_finished_run_is_kept(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    first = train(case.config(tmp_path, epochs=1))
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    again = train(case.config(tmp_path, epochs=1))
    assert again.reused
    assert again.metrics == first.metrics
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(RunError, match="finished run of another configuration"):
        train(case.config(tmp_path, epochs=1, lr=1e-4))


@each_system
def test_an_unfinished_run_of_another_configuration_is_refused(tmp_path: Path, name: str) -> None:
    interrupted(CASES[name].config(tmp_path), 2, 1)
    with pytest.raises(RunError, match="another configuration"):
        train(CASES[name].config(tmp_path, batch_size=7))


@each_system
def test_a_checkpoint_holds_its_own_random_numbers(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    interrupted(case.config(tmp_path, **case.noisy), 2, 1)
    state = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    with torch.random.fork_rng():
        torch.set_rng_state(state["random"])
        drawn = torch.rand(3)
        torch.manual_seed(case.config(tmp_path).seed)
        assert not torch.equal(drawn, torch.rand(3))


def test_divergence_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    config = CASES[EACH[TEXTS]].config(tmp_path, lr=1e30, warmup=0.0, clip=0.0, epochs=5)
    with pytest.raises(Diverged, match="Lower lr"):
        train(config)


@each_system
def test_early_stopping_and_best_epoch(tmp_path: Path, name: str) -> None:
    result = train(CASES[name].config(tmp_path, epochs=40, patience=2))
    run = Run.open(result.path)
    values = [record["dev"][run.metrics[0]] for record in run.info["history"]]
    assert result.epochs == len(values) == result.best_epoch + 2 < 40
    assert values.index(max(values)) == result.best_epoch - 1
    assert max(values) == result.metrics["dev"][run.metrics[0]]


@each_system
def test_the_last_fit_takes_the_dev_rows_too_and_keeps_its_last_epoch(
    tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    usual = Run.open(train(case.config(tmp_path, epochs=3)).path)
    data = case.values(tmp_path)["data"] | {"fit_on_dev": True}
    result = train(case.config(tmp_path, "last", data=data, epochs=3))
    counts = usual.info["examples"]
    assert Run.open(result.path).info["examples"] == {
        "train": {unit: count + counts["dev"][unit] for unit, count in counts["train"].items()},
        "test": counts["test"],
    }
    assert result.best_epoch == result.epochs == 3
    assert set(result.metrics) == {"test"}
    with pytest.raises(DataError, match="no examples in the split 'dev'"):
        evaluate(EvaluateConfig(run=result.path, split="dev"))
    with pytest.raises(ConfigError, match="patience needs a dev split"):
        case.config(tmp_path, data=data, patience=2)


@each_system
def test_the_tier_changes_nothing(tmp_path: Path, name: str) -> None:
    for tier in ("host", "disk"):
        result = train(CASES[name].config(tmp_path, out=tier, tier=tier, epochs=2))
        assert result.tier.startswith(tier)
    assert same_weights(tmp_path / "host", tmp_path / "disk")


@each_system
def test_what_other_trainings_have_read_changes_nothing(tmp_path: Path, name: str) -> None:
    memo, case = Memo(), CASES[name]
    for out, lr in (("a", 1e-2), ("b", 1e-3), ("c", 1e-2)):
        train(case.config(tmp_path, out, lr=lr, epochs=1), memo=memo)
    train(case.config(tmp_path, "alone", lr=1e-2, epochs=1))
    assert same_weights(tmp_path / "a", tmp_path / "c")
    assert same_weights(tmp_path / "a", tmp_path / "alone")
    assert not same_weights(tmp_path / "a", tmp_path / "b")


def test_a_memo_drops_what_was_used_longest_ago() -> None:
    memo, made = Memo(limit=10), list[str]()

    def get(name: str, size: int = 4) -> str:
        def make() -> str:
            made.append(name)
            return name.upper()

        return memo.get((name,), make, lambda _: size)

    assert [get(name) for name in "abac"] == ["A", "B", "A", "C"]  # then b goes
    assert [get(name) for name in "acb"] == ["A", "C", "B"]
    assert made == ["a", "b", "c", "b"]
    assert get("large", 99) == get("large", 99) == "LARGE"
    assert made[4:] == ["large"]


@each_system
def test_the_order_seed_gives_order_noise_and_drops(tmp_path: Path, name: str) -> None:
    """So trainings of other seeds can share their batches."""
    case, seen = CASES[name], []
    for seeds in ({"seed": 1, "order_seed": 5}, {"seed": 2, "order_seed": 5}, {"seed": 5}):
        config = case.config(tmp_path, **case.noisy | seeds)
        setup = prepare(config)
        torch.manual_seed(config.seed)
        batch = next(make_loader(config, setup).epoch(1))
        towers = training_states(config, setup, batch, Moment(1, 0, 4))
        seen.append((batch.index, [s for each in towers.values() for s in each.states.values()]))
    for index, states in seen[1:]:
        assert torch.equal(index, seen[0][0])
        assert all(torch.equal(a, b) for a, b in zip(states, seen[0][1], strict=True))
    later = training_states(config, setup, batch, Moment(2, 0, 4))
    states = [s for each in later.values() for s in each.states.values()]
    assert not all(map(torch.equal, states, seen[0][1]))


def test_tensorboard_writes_curves(tmp_path: Path) -> None:
    train(CASES[EACH[TEXTS]].config(tmp_path, epochs=1, tensorboard=True))
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


@each_system
def test_training_and_probing_import_nothing_of_a_backbone(tmp_path: Path, name: str) -> None:
    code = (
        "import json, sys\n"
        "sys.modules['transformers'] = None\n"
        "from pipeline.train import train, train_config\n"
        "from pipeline.evaluate import EvaluateConfig, evaluate\n"
        "from pipeline.probe import probe\n"
        "config = train_config(json.loads(sys.argv[1]))\n"
        "train(config); evaluate(EvaluateConfig(run=config.out, resamples=2))\n"
        "probe(config, 'last', resamples=2)\n"
        "assert sys.modules['transformers'] is None\n"
        "assert not {'PIL', 'av', 'torchvision', 'timm'} & sys.modules.keys()\n"
    )
    values = CASES[name].values(tmp_path, epochs=1)
    command = [sys.executable, "-c", code, json.dumps(values)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@each_system
def test_bad_options_are_listed_together(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as error:
        CASES[name].config(tmp_path, lr=-1, schedule="cubic", epoch=3)
    assert "3 problem(s)" in str(error.value)


@each_system
def test_weight_decay_spares_norms_biases_and_single_numbers(tmp_path: Path, name: str) -> None:
    extra = {"learn_scale": True} if EACH[TOWERS] == name else {}
    config = CASES[name].config(tmp_path, **extra)
    model = make_model(config, prepare(config))
    optimizer = make_optimizer(model, config)
    decayed, plain = (group["params"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [config.weight_decay, 0.0]
    assert len(decayed) + len(plain) == len(list(model.parameters()))
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm | StackedNorm)]
    spared = {id(p) for norm in norms for p in norm.parameters()}
    spared |= {id(p) for n, p in model.named_parameters() if n.endswith("bias") or not p.dim()}
    assert {id(p) for p in plain} == spared
    assert len(spared) > len([p for norm in norms for p in norm.parameters()])


@pytest.mark.parametrize("name", ["classes", "compared", "images"])
def test_statistics_are_those_of_the_distinct_training_inputs(tmp_path: Path, name: str) -> None:
    config = CASES[name].config(tmp_path)
    setup = prepare(config)
    model = setup.system.build(config, setup)
    set_statistics(model, setup)
    checked = 0
    for side, towers in setup.system.sides(model):
        taps, cache = setup.taps[towers[0]], setup.caches[towers[0]]
        samples = np.unique(np.concatenate([setup.splits["train"].clean[n] for n in towers]))
        read = cache.read(samples, taps.names)
        linear = side.side.target_down.linear
        width = taps.anchor.shape[-1]
        mean, scale = (linear.get_buffer(f"{what}_{width}") for what in ("mean", "scale"))
        for number, tap in enumerate(taps.targets):
            states = read[tap.name].double().flatten(0, -2)
            close = {"atol": 1e-5, "rtol": 1e-5}
            torch.testing.assert_close(mean[number].double(), states.mean(0), **close)
            wanted = states.std(0, correction=0)
            torch.testing.assert_close(scale[number].double(), wanted, **close)
            checked += 1
    assert checked >= 2


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
