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
from pipeline.config import ConfigError
from pipeline.export import ExportConfig, export, recorded_backbone
from pipeline.extract import extract_inputs
from pipeline.fused.job import ExportError
from pipeline.fused.loading import load_fused
from pipeline.index import IndexConfig, build_index
from pipeline.run import Run
from pipeline.search import SearchConfig, search
from pipeline.sweep import SweepConfig, sweep
from pipeline.systems import data_config, load_dataset, train_config
from pipeline.train import train


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
    backbone, dataset = load_backbone(str(places["backbone"])), load_dataset(data_config(data))
    rows = [row for split in dataset.splits.values() for row in split.rows("text", "text")]
    extract_inputs(backbone, rows, places["cache"])
    options = {"cache": str(places["cache"]), "out": places["run"], "data": data, "epochs": 1}
    train(train_config(options | {"device": "cpu"}))
    return places


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_run_is_exported_with_its_metrics_and_predicts_as_it_did(
    tmp_path: Path, task: str
) -> None:
    places = trained(tmp_path, task)
    report = export(
        ExportConfig(run=places["run"], out=places["out"], backbone=(str(places["backbone"]),))
    )
    assert report.parity.passed
    card = (places["out"] / "README.md").read_text()
    assert "| test | " + ("accuracy" if task == "classification" else "pearson") in card
    assert str(tmp_path) not in card
    model = load_fused(places["out"])
    table = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    records = (places["run"] / "predictions_test.jsonl").read_text().splitlines()
    assert records
    for record in map(json.loads, records):
        text = table[int(record["id"].split("/")[1])]["text"]
        (found,) = model.predict([text])
        if task == "regression":
            assert found["score"] == pytest.approx(record["score"], rel=1e-4)
        else:
            assert found["label"] == record["label"]


def test_what_the_run_was_not_trained_on_is_refused(tmp_path: Path) -> None:
    places = trained(tmp_path, "classification")
    config = ExportConfig(run=places["run"], out=places["out"])
    cache = Run.open(places["run"]).caches()["text"]
    cache.provenance.clear()
    with pytest.raises(ExportError, match="as `backbone`"):
        recorded_backbone(cache, config, None)
    save_tiny("bert", tmp_path / "other", seed=1)
    with pytest.raises(FingerprintMismatch, match=r"weights.sha256: cached"):
        export(config.model_copy(update={"backbone": (str(tmp_path / "other"),)}))
    info = json.loads((places["run"] / "run.json").read_text())
    recorded = info["towers"]["text"]["cache"]
    recorded["fingerprint"]["preprocessing"]["max_length"] = 7
    recorded["digest"] = "another"
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
    data = {"task": "retrieval", "train": str(table), "media": str(places["media"])}
    data |= {"fractions": [0.6, 0.2, 0.2]}
    splits = load_dataset(data_config(data)).splits.values()
    text = load_backbone(str(places["text"]))
    seer = load_backbone(str(weights), architecture="efficientnet_lite0", image_size=32)
    for tower, backbone in (("text", text), ("media", seer)):
        rows = [row for split in splits for row in split.rows(tower, backbone.modality)]
        extract_inputs(backbone, rows, places[f"{tower}_cache"])
    caches = {name: str(places[name]) for name in ("text_cache", "media_cache")}
    options = {"out": places["run"], "data": data, "epochs": 1, "embed_width": 16, **caches}
    return places, options | {"device": "cpu"}


def trained_towers(folder: Path) -> dict[str, Path]:
    """Train two towers for one epoch."""
    places, options = cached_towers(folder)
    train(train_config(options))
    return places


def test_a_retrieval_run_is_exported_indexed_and_searched(tmp_path: Path) -> None:
    places = trained_towers(tmp_path)
    report = export(ExportConfig(run=places["run"], out=places["out"], samples=8))
    assert report.parity.passed
    assert [row.batch for row in report.parity.rows] == [1, 8, 1, 8]
    card = (places["out"] / "README.md").read_text()
    assert "| test | t2m_r1 |" in card
    assert str(tmp_path) not in card
    with pytest.raises(ConfigError, match=r"several towers; give text=\.\.\., media=\.\.\."):
        export(ExportConfig(run=places["run"], out=tmp_path / "other", cache=(str(tmp_path),)))
    moved = places["media_cache"].rename(tmp_path / "moved.zarr")
    again = {"run": places["run"], "out": tmp_path / "again", "samples": 4}
    assert export(ExportConfig(**again, cache=(f"media={moved}",))).parity.passed
    build_index(IndexConfig(model=places["out"], media=places["media"], out=tmp_path / "index"))
    found = search(SearchConfig(index=tmp_path / "index", query="the cat is good", k=3))
    records = (places["run"] / "predictions_test.jsonl").read_text().splitlines()
    assert records
    assert len(found.hits) == 3
    model = load_fused(places["out"])
    best = (
        model.encode_text("the cat is good")
        @ model.encode_image([places["media"] / hit.path for hit in found.hits]).T
    )
    assert best[0].tolist() == pytest.approx([hit.score for hit in found.hits], abs=1e-4)


def test_a_trial_of_two_towers_is_exported_by_its_name(tmp_path: Path) -> None:
    places, options = cached_towers(tmp_path)
    searched = {"space": {"lr": [1e-3, 1e-2]}, "sampler": "grid", "refit": "none"}
    result = sweep(SweepConfig.build({"run": options, **searched}))
    name = f"{places['run']}:{result.best}"
    called = CliRunner().invoke(
        cli.commands, ["export", name, str(places["out"]), "--samples", "4"], catch_exceptions=False
    )
    assert called.exit_code == 0, called.output
    assert json.loads((places["out"] / "parity_report.json").read_text())["passed"]
    assert load_fused(places["out"]).encode_text("the cat is good").shape == (1, 16)
