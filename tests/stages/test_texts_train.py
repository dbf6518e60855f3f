"""Training on labelled texts: what it learns, its losses, its units, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stagekit import TAPS, build_cache, cached, read_lines, settings, train_config, write_pairs

from cache import Cache
from pipeline.config import ConfigError
from pipeline.inputs import TextInput
from pipeline.reading.config import TextData
from pipeline.run import Run
from pipeline.systems import load_dataset, system_of
from pipeline.systems.locate import MissingInputs
from pipeline.tasks.base import Moment
from pipeline.train import TrainProgress, train
from pipeline.training.job import make_model
from pipeline.training.setup import prepare
from unipt import Outputs, SideClassifier, States

NOW = Moment(0, 0, 1)


def test_it_learns_and_writes_a_run(tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    result = train(train_config(tmp_path, epochs=8), seen.append)
    assert result.metrics["dev"]["accuracy"] >= 0.9
    assert result.metrics["test"]["accuracy"] >= 0.9
    assert (seen[-1].epoch, seen[-1].batch, seen[-1].batches) == (8, 6, 6)
    assert seen[-1].eta == 0
    run = Run.open(result.path)
    assert run.task == "classification"
    assert {name: tower.taps for name, tower in run.towers.items()} == {"text": TAPS}
    assert run.labels == ("bad", "good")
    assert run.towers["text"].cache["fingerprint"] == {"weights": "a"}
    assert [r["epoch"] for r in read_lines(result.path / "metrics.jsonl")] == [*range(1, 9)]
    records = read_lines(result.path / "predictions_test.jsonl")
    assert len(records) == 24
    assert (
        np.mean([r["label"] == r["target"] for r in records]) == result.metrics["test"]["accuracy"]
    )
    assert all(abs(sum(r["confidence"]) - 1) < 1e-5 for r in records)
    model = run.model()
    assert sum(p.numel() for p in model.parameters()) == result.parameters
    assert not model.training


def test_the_last_fit_learns(tmp_path: Path) -> None:
    data = settings(tmp_path)["data"] | {"fit_on_dev": True}
    result = train(train_config(tmp_path, data=data, epochs=8))
    assert result.metrics["test"]["accuracy"] >= 0.9


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


def test_one_tap_is_anchor_and_target_both(tmp_path: Path) -> None:
    found = {}
    for tap in ("layer.0", "layer.1"):  # only the first one tells the classes apart
        result = train(train_config(tmp_path, tap, taps=[tap]))
        run = Run.open(result.path)
        assert run.towers["text"].taps == (tap,)
        records = read_lines(result.path / "predictions_test.jsonl")
        assert all(record["confidence"] == [1.0] for record in records)
        found[tap] = result.metrics["test"]["accuracy"]
    assert found["layer.0"] >= 0.9 > found["layer.1"]


def test_widths_follow_the_backbone_unless_they_are_given(tmp_path: Path) -> None:
    for changes, wanted in (
        ({"side_width": None, "reduction": 4.0}, (2, 8)),
        ({"side_width": 5, "reduction": 4.0}, (5, 8)),
        ({"side_width": 5, "out_width": 3}, (5, 3)),
    ):
        config = train_config(tmp_path, **changes)
        model = make_model(config, prepare(config))
        assert isinstance(model, SideClassifier)
        side = model.tower.config["side"]
        assert (side["side_width"], side["out_width"]) == wanted


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
    assert run.labels is None
    cache = Cache.open(tmp_path / "cache")
    example = load_dataset(run.config.data).split("test").examples[0]
    assert example.id == records[0]["id"]
    towers = {}
    for (name, tower), given in zip(run.towers.items(), example.inputs, strict=True):
        samples = cache.find(np.frombuffer(given.key(), np.uint8).reshape(1, 16))
        read = cache.read(samples, tower.taps)
        bounds = torch.tensor([0, int(cache.lengths["tokens"][samples[0]])])
        states = {tap: read[tap].float() for tap in tower.taps}
        towers[name] = States(states, {"tokens": bounds})
    score = run.model()(towers).values["logits"].item()
    assert score == pytest.approx(records[0]["score"], abs=1e-4)


def test_the_loss_of_a_regression_is_in_units_of_the_training_deviation(tmp_path: Path) -> None:
    columns = {"text": "a", "text_pair": "b", "label": "score"}
    file = write_pairs(tmp_path / "pairs.csv")
    dataset = load_dataset(TextData.build({"task": "regression", "train": file, **columns}))
    task = system_of("regression").task(dataset)
    scores = np.array([e.target for e in dataset.split("train").examples])
    outputs, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 2.5], dtype=torch.float64)
    wanted = (1.0 + 0.25) / 2 / scores.var()
    assert task.loss(Outputs({"logits": outputs}), targets, NOW).item() == pytest.approx(wanted)


def test_missing_inputs_are_counted_and_shown(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    with (tmp_path / "rows.tsv").open("a") as file:
        file.write("".join(f"good stranger {i}\tgood\n" for i in range(40)))
    with pytest.raises(MissingInputs, match=r"\d+ of \d+ inputs .*'good stranger") as error:
        train(config)
    assert f"Extract a cache with {tmp_path / 'rows.tsv'}" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_cache_of_other_inputs_is_no_match(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    other = build_cache(tmp_path / "other", [TextInput("good day"), TextInput("bad day")])
    with pytest.raises(MissingInputs, match="not in the cache"):
        train(config.model_copy(update={"cache": other}))


def test_what_does_not_fit_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"matches none of embeddings, layer\.0, layer\.1"):
        train(train_config(tmp_path, taps=["encoder.*"]))
    with pytest.raises(ConfigError, match="preset: Input should be 'text', 'vse_text' or"):
        train_config(tmp_path, preset="mdetr")
    data = settings(tmp_path)["data"]
    with pytest.raises(ConfigError) as error:
        train_config(tmp_path, data=data | {"fit_on_dev": True}, patience=2, memory_keys=3)
    for part in ("patience needs a dev split", "give memory_weight"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match="are options of classification"):
        train_config(tmp_path, data=data | {"task": "regression"}, label_smoothing=0.1)


def test_losses_by_hand(tmp_path: Path) -> None:
    config = train_config(tmp_path, label_smoothing=0.2)
    dataset = load_dataset(config.data)
    logits, targets = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 0])
    outputs, system = Outputs({"logits": logits}), system_of("classification")
    log = torch.log_softmax(logits, 1)
    plain = system.task(dataset).loss(outputs, targets, NOW)
    assert plain == pytest.approx(-(log[0, 1] + log[1, 0]).item() / 2)
    smooth = system.task(dataset, config).loss(outputs, targets, NOW)
    wanted = -(0.9 * log[0, 1] + 0.1 * log[0, 0] + 0.9 * log[1, 0] + 0.1 * log[1, 1]) / 2
    assert smooth.item() == pytest.approx(wanted.item())
    balanced = train_config(tmp_path, class_weights="balanced")
    with pytest.raises(ValueError, match="balanced class weights: no training row of third"):
        named = TextData.build(
            {"train": config.data.train, "label_names": ("bad", "good", "third")}
        )
        system.task(load_dataset(named), balanced)
    weighted = system.task(dataset, balanced)
    counts = np.bincount([e.target for e in dataset.split("train").examples])
    shares = counts.sum() / (2 * counts)
    wanted = -(shares[1] * log[0, 1] + shares[0] * log[1, 0]) / shares.sum()
    assert weighted.loss(outputs, targets, NOW).item() == pytest.approx(wanted.item())
