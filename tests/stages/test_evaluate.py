"""Evaluation: the metrics of the written predictions, intervals, and the right cache only."""

import json
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score, matthews_corrcoef
from stagekit import build_cache, read_lines, train_config

from cache import FingerprintMismatch
from pipeline.data import DataConfig, DataError, load_dataset
from pipeline.evaluate import EvaluateConfig, evaluate, render_table
from pipeline.report import report
from pipeline.run import Run, RunError
from pipeline.train import train


def settings(run: Path, **values: object) -> EvaluateConfig:
    return EvaluateConfig.build({"run": run, "resamples": 50, "device": "cpu"} | values)


def test_metrics_are_those_of_the_predictions(tmp_path: Path) -> None:
    path = train(train_config(tmp_path, epochs=1)).path
    trained = Run.open(path).info["metrics"]
    for split in ("dev", "test", "train"):
        found = evaluate(settings(path, split=split))
        records = read_lines(path / f"predictions_{split}.jsonl")
        truth, labels = [r["target"] for r in records], [r["label"] for r in records]
        assert found.examples == len(records)
        assert found.metrics["accuracy"].value == pytest.approx(accuracy_score(truth, labels))
        assert found.metrics["matthews"].value == pytest.approx(matthews_corrcoef(truth, labels))
        assert all(m.low <= m.value <= m.high for m in found.metrics.values())
        stored = json.loads((path / f"evaluation_{split}.json").read_text())
        assert stored == found.to_dict()
        if split != "train":
            assert {k: v.value for k, v in found.metrics.items()} == pytest.approx(trained[split])
    assert evaluate(settings(path)).metrics == evaluate(settings(path)).metrics


def test_the_table_shows_value_and_interval(tmp_path: Path) -> None:
    found = evaluate(settings(train(train_config(tmp_path, epochs=1)).path))
    text = found.render()
    assert text.splitlines()[0].split("  ")[0] == "test (24 examples)"
    value = found.metrics["accuracy"]
    assert f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]" in text
    assert "95% bootstrap interval" in text
    assert render_table([found, found]).count("side network") == 2


def test_a_hidden_test_gives_predictions_only(tmp_path: Path) -> None:
    config = train_config(tmp_path, epochs=1)
    hidden = tmp_path / "hidden.jsonl"
    hidden.write_text('{"text": "good one"}\n{"text": "bad two"}\n')
    data = DataConfig.build({"train": str(config.data.train), "test": str(hidden)})
    dataset = load_dataset(data)
    cache = build_cache(tmp_path / "hidden", [text for _, text in dataset.inputs()])
    path = train(config.model_copy(update={"data": data, "cache": cache})).path
    assert "test" not in Run.open(path).info["metrics"]
    found = evaluate(settings(path))
    assert found.metrics == {}
    assert "labels hidden" in found.render()
    records = read_lines(path / "predictions_test.jsonl")
    assert [r["target"] for r in records] == [None, None]
    assert {r["label"] for r in records} <= {"good", "bad"}
    assert len(report(path)) == 2


def test_another_cache_is_refused_with_the_difference(tmp_path: Path) -> None:
    config = train_config(tmp_path, epochs=1)
    path = train(config).path
    inputs = [text for _, text in load_dataset(config.data).inputs()]
    other = build_cache(tmp_path / "other", inputs, mark="b")
    with pytest.raises(FingerprintMismatch, match=r'weights: trained on "a", found "b"'):
        evaluate(settings(path, cache=other))
    moved = (tmp_path / "cache").rename(tmp_path / "moved")
    assert evaluate(settings(path, cache=moved)).examples == 24


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    path = train(train_config(tmp_path, epochs=1)).path
    with pytest.raises(DataError, match="no examples in the split 'final'; there are: train"):
        evaluate(settings(path, split="final"))
    with pytest.raises(RunError, match="there is no run folder"):
        evaluate(settings(tmp_path / "nowhere"))


def test_changed_files_are_noticed(tmp_path: Path) -> None:
    path = train(train_config(tmp_path, epochs=1)).path
    file = tmp_path / "rows.tsv"
    file.write_text(file.read_text().replace("\tgood", "\tfine"))
    with pytest.raises(ValueError, match="restore the files"):
        evaluate(settings(path))
