"""From files to an exported model: extract, train, export, through the public functions."""

import json
from pathlib import Path

import pytest
import torch
from tiny import SENTENCES, save_tiny

from cache import FingerprintMismatch
from pipeline.export import ExportConfig, export, open_cache, recorded_backbone
from pipeline.extract import ExtractConfig, extract
from pipeline.fused.build import ExportError
from pipeline.predict import Predictor
from pipeline.run import Run
from pipeline.train import TrainConfig, train


def trained(folder: Path, task: str) -> dict[str, Path]:
    """Train a run for one epoch on a random model's states."""
    table = folder / "rows.jsonl"
    rows = [
        {"text": f"{text} {word}", "label": word if task == "classification" else 300.0 + len(text)}
        for text in SENTENCES
        for word in ("good", "bad", "tree", "dog")
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metric = "accuracy" if task == "classification" else "pearson"
    data = {"task": task, "train": str(table), "metrics": [metric]}
    places = {name: folder / name for name in ("backbone", "cache", "run", "out")}
    save_tiny("bert", places["backbone"])
    values = {"backbone": str(places["backbone"]), "out": places["cache"], "data": data}
    extract(ExtractConfig.build(values | {"force": True}))
    options = {"cache": places["cache"], "out": places["run"], "data": data, "epochs": 1}
    train(TrainConfig.build(options | {"device": "cpu"}))
    return places


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_run_is_exported_with_its_metrics_and_predicts_as_it_did(
    tmp_path: Path, task: str
) -> None:
    places = trained(tmp_path, task)
    report = export(
        ExportConfig(run=places["run"], out=places["out"], backbone=str(places["backbone"]))
    )
    assert report.parity.passed
    card = (places["out"] / "README.md").read_text()
    assert "| test | " + ("accuracy" if task == "classification" else "pearson") in card
    assert str(tmp_path) not in card
    predictor = Predictor(places["out"], device="cpu")
    assert predictor.regression is (task == "regression")
    table = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    records = (places["run"] / "predictions_test.jsonl").read_text().splitlines()
    assert records
    for record in map(json.loads, records):
        text = table[int(record["id"].split("/")[1])]["text"]
        found = predictor.outputs([predictor.row_of(text)])[0]
        if task == "regression":
            assert found.item() == pytest.approx(record["score"], rel=1e-4)
        else:
            assert predictor.labels[int(found.argmax())] == record["label"]


def test_what_the_run_was_not_trained_on_is_refused(tmp_path: Path) -> None:
    places = trained(tmp_path, "classification")
    config = ExportConfig(run=places["run"], out=places["out"])
    run = Run.open(places["run"])
    cache = open_cache(run.info["cache"], run.path)
    cache.origin.clear()
    with pytest.raises(ExportError, match="as `backbone`"):
        recorded_backbone(cache, config, None)
    with pytest.raises(ExportError, match=r"text_cache: not options .* are backbone, cache"):
        export(config.model_copy(update={"text_cache": tmp_path}))
    save_tiny("bert", tmp_path / "other", seed=1)
    with pytest.raises(FingerprintMismatch, match=r"weights.sha256: cached"):
        export(config.model_copy(update={"backbone": str(tmp_path / "other")}))
    info = json.loads((places["run"] / "run.json").read_text())
    info["cache"]["fingerprint"]["preprocessing"]["max_length"] = 7
    (places["run"] / "run.json").write_text(json.dumps(info))
    with pytest.raises(FingerprintMismatch, match=r"max_length: trained on 7, found 64"):
        export(config)
    assert not places["out"].exists()
    assert torch.is_grad_enabled()
