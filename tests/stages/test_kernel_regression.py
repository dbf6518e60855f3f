"""A memory beside the trained side network: fitted on train, weighed on dev, part of the run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from stagekit import cached, train_config, write_pairs

from pipeline.config import ConfigError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.run import Run
from pipeline.systems import kernel as module
from pipeline.systems.config import TrainConfig
from pipeline.systems.inference import run_passes
from pipeline.tasks.base import Moment
from pipeline.train import train
from pipeline.training.setup import prepare
from unipt import Outputs, SideClassifier

PAIRS = {"text": "a", "text_pair": "b", "label": "score", "task": "regression"}


def classifier(run: Run) -> SideClassifier:
    model = run.model()
    assert isinstance(model, SideClassifier)
    return model


def outputs(run: Run, config: TrainConfig, split: str) -> torch.Tensor:
    setup = prepare(config)
    (found,) = run_passes(run.model(), setup, setup.splits[split], batch_size=8)
    return found.values["logits"]


def dev_loss(run: Run, config: TrainConfig) -> float:
    setup = prepare(config)
    dev = setup.splits["dev"]
    targets = setup.task.targets(dev.examples, dev.clean).batch(torch.arange(len(dev)))
    found = Outputs({"logits": outputs(run, config, "dev")})
    return float(setup.task.loss(found, targets, Moment(0, 0, 1)))


@pytest.mark.parametrize("kind", ["classification", "balanced", "regression", "pairs"])
def test_it_lowers_the_dev_loss_and_repeats(tmp_path: Path, kind: str) -> None:
    extra: dict[str, object] = {"epochs": 1, "lr": 1e-3}
    if kind == "balanced":
        extra["class_weights"] = "balanced"
    if kind in ("regression", "pairs"):
        file = write_pairs(tmp_path / "pairs.csv")
        pair = "separate" if kind == "pairs" else "joint"
        extra["data"] = PAIRS | {"train": str(file), "pair": pair}
        cached(tmp_path, extra["data"])  # type: ignore[arg-type]
    configs = [
        train_config(tmp_path, name, kernel_keys=keys, **extra)
        for name, keys in (("alone", 0), ("whole", 30), ("again", 30))
    ]
    results = [train(config) for config in configs]
    runs = [Run.open(result.path) for result in results]
    assert [classifier(run).kernel is None for run in runs] == [True, False, False]
    assert dev_loss(runs[1], configs[1]) < dev_loss(runs[0], configs[0])
    assert torch.equal(*(outputs(run, configs[1], "test") for run in runs[1:]))
    assert results[0].parameters == results[1].parameters
    found = evaluate(EvaluateConfig(run=runs[1].path, split="test")).metrics
    for name, value in results[1].metrics["test"].items():
        assert found[name].value == pytest.approx(value)


def test_the_network_is_trained_as_without(tmp_path: Path) -> None:
    runs = [
        Run.open(train(train_config(tmp_path, name, kernel_keys=keys)).path)
        for name, keys in (("alone", 0), ("whole", 12))
    ]
    alone, whole = (classifier(run).state_dict() for run in runs)
    shared = [name for name in alone if not name.startswith("head")]
    assert all(torch.equal(alone[name], whole[name]) for name in shared)
    ratio = whole["head.1.weight"] / alone["head.1.weight"]
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)
    assert ratio.mean() > 0


def test_of_many_rows_some_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 20)
    run = Run.open(train(train_config(tmp_path, kernel_keys=1000)).path)
    memory = classifier(run).kernel
    assert memory is not None
    assert memory.keys.shape == (20, 24)
    assert np.isfinite(memory.values.numpy()).all()


def test_without_dev_its_weight_must_be_given(tmp_path: Path) -> None:
    data = train_config(tmp_path).data.model_dump() | {"fit_on_dev": True}
    with pytest.raises(ConfigError, match="give kernel_weight"):
        train_config(tmp_path, kernel_keys=5, data=data)
    runs = [
        Run.open(train(train_config(tmp_path, name, kernel_keys=5, data=data, **given)).path)
        for name, given in (("one", {"kernel_weight": 1.0}), ("two", {"kernel_weight": 2.0}))
    ]
    one, two = (classifier(run).state_dict() for run in runs)
    assert torch.equal(2 * one.pop("memory.values"), two.pop("memory.values"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_run_says_what_dev_chose(tmp_path: Path) -> None:
    chosen = Run.open(train(train_config(tmp_path, "a", kernel_keys=12)).path)
    weight = chosen.info["kernel_weight"]
    given = Run.open(train(train_config(tmp_path, "b", kernel_keys=12, kernel_weight=weight)).path)
    config = train_config(tmp_path, "a", kernel_keys=12)
    ratio = outputs(chosen, config, "test") / outputs(given, config, "test")
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)
