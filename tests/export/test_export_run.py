"""From files to an exported model: extract, train, export, through the public functions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from tiny import SENTENCES, save_tiny
from towerkit import save_pictures

import cli
from cache import FingerprintMismatch
from pipeline.backbones import load_backbone
from pipeline.backbones.convnets import build_convnet
from pipeline.export import ExportConfig, export, recorded_backbone
from pipeline.extract import ExtractConfig, extract, extract_inputs
from pipeline.fused.build import ExportError
from pipeline.fused.loading import load_retrieval as load_retrieval_model
from pipeline.index import IndexConfig, build_index
from pipeline.predict import Predictor
from pipeline.retrieval.data import RetrievalData, load_retrieval
from pipeline.retrieval.train import RetrievalTrainConfig, train_retrieval
from pipeline.run import Run
from pipeline.search import SearchConfig, search
from pipeline.sweep import RetrievalSweepConfig, sweep
from pipeline.train import TrainConfig, train
from pipeline.training.evaluation import open_cache


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
    cache = open_cache(run, run.info["cache"])
    cache.provenance.clear()
    with pytest.raises(ExportError, match="as `backbone`"):
        recorded_backbone(cache, config, None)
    with pytest.raises(ExportError, match=r"text_cache: not options .* are backbone, cache"):
        export(config.model_copy(update={"text_cache": tmp_path}))
    save_tiny("bert", tmp_path / "other", seed=1)
    with pytest.raises(FingerprintMismatch, match=r"weights.sha256: cached"):
        export(config.model_copy(update={"backbone": str(tmp_path / "other")}))
    info = json.loads((places["run"] / "run.json").read_text())
    info["cache"]["fingerprint"]["preprocessing"]["max_length"] = 7
    info["cache"]["digest"] = "another"
    (places["run"] / "run.json").write_text(json.dumps(info))
    with pytest.raises(FingerprintMismatch, match=r"max_length: trained on 7, found 64"):
        export(config)
    assert not places["out"].exists()
    assert torch.is_grad_enabled()


def cached_towers(folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Cache two towers, tiny texts and pictures through a ConvNet; return places and options."""
    places = {name: folder / name for name in ("text", "run", "out", "media")}
    places |= {name: folder / f"{name}.zarr" for name in ("text_cache", "media_cache")}
    weights = folder / "lite0.safetensors"
    save_file(build_convnet("efficientnet_lite0").state_dict(), weights)
    save_tiny("bert", places["text"])
    words = ("cat", "dog", "tree", "mat", "film")
    names = [path.relative_to(places["media"]) for path in save_pictures(places["media"], 20)]
    rows = [f"{name},the {words[i % 5]} is {'not ' * (i // 5)}good" for i, name in enumerate(names)]
    table = folder / "captions.csv"
    table.write_text("image,caption\n" + "\n".join(rows) + "\n")
    data = RetrievalData(train=table, media=places["media"], fractions=(0.6, 0.2, 0.2))
    dataset = load_retrieval(data)
    text = load_backbone(str(places["text"]))
    seer = load_backbone(str(weights), architecture="efficientnet_lite0", image_size=32)
    extract_inputs(text, dataset.inputs("text"), places["text_cache"])
    extract_inputs(seer, dataset.inputs("image"), places["media_cache"])
    caches = {name: places[name] for name in ("text_cache", "media_cache")}
    options = {"out": places["run"], "data": data, "epochs": 1, "embed_width": 16, **caches}
    return places, options | {"device": "cpu"}


def trained_towers(folder: Path) -> dict[str, Path]:
    """Train two towers for one epoch."""
    places, options = cached_towers(folder)
    train_retrieval(RetrievalTrainConfig.build(options))
    return places


def test_a_retrieval_run_is_exported_indexed_and_searched(tmp_path: Path) -> None:
    places = trained_towers(tmp_path)
    report = export(ExportConfig(run=places["run"], out=places["out"], samples=12))
    assert report.parity.passed
    assert [row.batch for row in report.parity.rows] == [1, 8, 1, 8]
    card = (places["out"] / "README.md").read_text()
    assert "| test | t2m_r1 |" in card
    assert str(tmp_path) not in card
    with pytest.raises(ExportError, match=r"cache: not options .* are text_backbone, "):
        export(ExportConfig(run=places["run"], out=tmp_path / "other", cache=tmp_path))
    build_index(IndexConfig(model=places["out"], media=places["media"], out=tmp_path / "index"))
    found = search(SearchConfig(index=tmp_path / "index", query="the cat is good", k=3))
    records = (places["run"] / "predictions_test.jsonl").read_text().splitlines()
    assert records
    assert len(found.hits) == 3
    model = load_retrieval_model(places["out"])
    best = (
        model.encode_text("the cat is good")
        @ model.encode_image([places["media"] / hit.path for hit in found.hits]).T
    )
    assert best[0].tolist() == pytest.approx([hit.score for hit in found.hits], abs=1e-4)


def test_a_trial_of_two_towers_is_exported_by_its_name(tmp_path: Path) -> None:
    places, options = cached_towers(tmp_path)
    searched = {"space": {"lr": [1e-3, 1e-2]}, "sampler": "grid", "refit": "none"}
    result = sweep(RetrievalSweepConfig.build(options | searched))
    name = f"{places['run']}:{result.best}"
    called = CliRunner().invoke(
        cli.commands, ["export", name, str(places["out"]), "--samples", "4"], catch_exceptions=False
    )
    assert called.exit_code == 0, called.output
    assert json.loads((places["out"] / "parity_report.json").read_text())["passed"]
    assert load_retrieval_model(places["out"]).encode_text("the cat is good").shape == (1, 16)
