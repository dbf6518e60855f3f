"""Labelled images from their folders to a model that classifies: what a user relies on."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from colourkit import COLOURS, save_resnet, save_vit, settings, write_images
from PIL import Image

import cli
from cache import Cache
from pipeline.config import ConfigError
from pipeline.data import Example, Labelled
from pipeline.errors import DataError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.export import ExportConfig, export
from pipeline.extract import ExtractConfig, extract
from pipeline.extraction.media import BadMedia
from pipeline.fused.loading import load_fused
from pipeline.inputs import TextInput
from pipeline.media.images import MediaError
from pipeline.plan import PlanConfig, plan
from pipeline.predict import PredictConfig, predict
from pipeline.probe import probe
from pipeline.sweep import SweepConfig, sweep
from pipeline.systems import data_config, load_dataset, train_config
from pipeline.tasks.classification import Classification
from pipeline.train import train
from unipt import Outputs


def load(path: Path, **options: Any) -> Any:
    return load_dataset(data_config({"task": "image-classification", "train": str(path)} | options))


def test_class_folders_splits_of_them_and_tables_are_the_same_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "colours")
    plain = load(folder)
    assert plain.labels == tuple(sorted(COLOURS))
    rows = [
        {"image": f"{name}/{number:02}.png", "label": name}
        for name in sorted(COLOURS)
        for number in range(20)
    ]
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, examples in load(table).splits.items():
        assert examples.targets == plain.splits[split].targets
        assert [e.inputs for e in examples.examples] == [
            e.inputs for e in plain.splits[split].examples
        ]
    for part, source in (("train", range(14)), ("test", range(14, 20))):
        for name in COLOURS:
            (tmp_path / "split" / part / name).mkdir(parents=True)
            for number in source:
                shutil.copy(folder / name / f"{number:02}.png", tmp_path / "split" / part / name)
    found = load(tmp_path / "split")
    assert {name: len(each) for name, each in found.splits.items()}["test"] == 18


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"image": "nowhere.png", "label": "red"}], "no such file"),
        ([{"image": "../secret.png", "label": "red"}], "leaves the media folder"),
        ([{"image": "red/00.png", "label": None}], "label is missing"),
        ([{"picture": "red/00.png", "label": "red"}], "no column of images"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    folder = write_images(tmp_path / "colours", 4)
    good = [{"image": f"{n}/{k:02}.png", "label": n} for n in COLOURS for k in range(4)]
    table = folder / "rows.jsonl"
    given = rows if "picture" in rows[0] else [*good, *rows]
    table.write_text("".join(json.dumps(row) + "\n" for row in given))
    with pytest.raises(DataError, match=said):
        load(table, label_names=list(COLOURS))


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        load(tmp_path / "empty")
    write_images(tmp_path / "parts" / "val", 2)
    with pytest.raises(DataError, match="classes for dev, and none called train"):
        load(tmp_path / "parts")


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "things")
    (folder / "red").rename(folder / "train")
    assert load(folder).labels == ("blue", "green", "train")


def test_a_folder_may_be_given_from_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_images(tmp_path / "a" / "colours")
    whole = load(folder)
    monkeypatch.chdir(tmp_path)
    found = load(Path("a/colours"))
    for split, examples in whole.splits.items():
        assert found.splits[split].targets == examples.targets
        assert [e.inputs[0].path.resolve() for e in found.splits[split].examples] == [
            e.inputs[0].path for e in examples.examples
        ]
    (example, *_) = found.splits["test"].examples
    assert str(example.inputs[0].path) == f"a/colours/{example.id.removeprefix('test/')}"
    assert not caplog.records
    shutil.copy(folder / "red" / "00.png", folder / "loose.png")
    load(folder)
    assert "1 file(s) lie in no class folder: loose.png" in caplog.text


def test_labels_may_be_numbers_and_of_a_test_table_hidden(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "colours")
    rows = [f"{name}/{n:02}.png,{k}" for k, name in enumerate(COLOURS) for n in range(10)]
    (folder / "rows.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    assert load(folder / "rows.csv").labels == ("0", "1", "2")
    named = load(folder / "rows.csv", label_names=tuple(COLOURS))
    for example in named.splits["test"].examples:
        assert named.labels[example.target] == example.inputs[0].path.parent.name
    for end in ("", ",", ",-1"):
        header = "file,label" if end else "file"
        lines = [f"red/{n:02}.png{end}" for n in range(10, 14)]
        (folder / "test.csv").write_text("\n".join([header, *lines]) + "\n")
        data = load(folder / "rows.csv", test=str(folder / "test.csv"))
        assert data.splits["test"].targets is None and len(data.splits["test"]) == 4
    with pytest.raises(ConfigError, match="label_names has duplicates"):
        load(folder, label_names=("a", "a"))


def test_groups_stay_together_and_must_be_there(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "colours")
    rows = [
        {"image": f"{name}/{n:02}.png", "label": name, "scene": f"{name}{n // 4}"}
        for name in COLOURS
        for n in range(20)
    ]
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load(table, group_column="scene").splits
    seen = [{example.group for example in each.examples} for each in splits.values()]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 15
    with pytest.raises(DataError, match="no column 'place'"):
        load(table, group_column="place")
    rows[3]["scene"] = None
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="the group is missing: line 4"):
        load(table, group_column="scene")


def test_it_learns_with_views_and_evaluates(tmp_path: Path) -> None:
    run = train(train_config(settings(tmp_path)))
    assert run.metrics["test"]["accuracy"] > 0.9
    assert run.metrics["test"]["top5_accuracy"] == 1.0
    found = evaluate(EvaluateConfig(run=run.path))
    assert found.metrics["accuracy"].value == run.metrics["test"]["accuracy"]
    assert Cache.open(tmp_path / "cache").row_to_sample.ndim == 2
    for layers in ("last", "all"):
        assert probe(train_config(settings(tmp_path)), layers).evaluations["test"].metrics


def test_a_broken_file_is_named_or_skipped(tmp_path: Path) -> None:
    values = settings(tmp_path)
    (tmp_path / "colours" / "red" / "03.png").write_bytes(b"no image")
    where = {"backbone": str(tmp_path / "model"), "out": str(tmp_path / "again"), "device": "cpu"}
    with pytest.raises(BadMedia, match=r"03\.png"):
        extract(ExtractConfig.build({"data": values["data"], **where}))
    data = values["data"] | {"bad_media": "skip"}
    report = extract(ExtractConfig.build({"data": data, **where}))
    assert len(report.skipped) == 1
    changed = values | {"data": data, "cache": str(tmp_path / "again"), "out": tmp_path / "two"}
    run = train(train_config(changed | {"epochs": 1}))
    assert run.metrics["test"]


@pytest.mark.parametrize("layout", ["map", "vector"])
def test_maps_and_vectors_are_classified_too(tmp_path: Path, layout: str) -> None:
    folder = write_images(tmp_path / "colours")
    model = save_vit(tmp_path / "model") if layout == "vector" else save_resnet(tmp_path / "model")
    where = {"backbone": str(model), "out": str(tmp_path / "cache"), "device": "cpu"}
    where["pool"] = "mean" if layout == "vector" else "none"
    data = {"task": "image-classification", "train": str(folder)}
    extract(ExtractConfig.build({"data": data, **where}))
    assert {tap.kind for tap in Cache.open(tmp_path / "cache").taps} == {layout}
    changes = {"data": data, "cache": str(tmp_path / "cache"), "epochs": 20}
    values = {"out": str(tmp_path / "run"), "batch_size": 8, "lr": 1e-2, "device": "cpu"}
    run = train(train_config(values | changes))
    assert run.metrics["test"]["accuracy"] > 0.9
    assert export(ExportConfig(run=run.path, out=tmp_path / "out", samples=8)).parity.passed


def test_the_plan_counts_images(tmp_path: Path) -> None:
    values = settings(tmp_path)
    options = {"data": values["data"], "backbone": str(tmp_path / "model"), "trial_seconds": 0.1}
    priced = plan(PlanConfig.build(options | {"device": "cpu", "out": str(tmp_path / "new")}))
    assert (priced.unit, priced.rows) == ("images", 60)


def test_a_sweep_chooses_by_accuracy(tmp_path: Path) -> None:
    values = settings(tmp_path, "sweep", epochs=2)
    space = {"lr": "1e-2,1e-6", "pooling": "mean,max"}
    result = sweep(SweepConfig.build(values | {"space": space, "sampler": "grid"}))
    assert result.metric == "accuracy"
    assert result.trials[result.best or 0]["params"]["lr"] == 1e-2


def test_cached_is_live_is_exported(tmp_path: Path) -> None:
    run = train(train_config(settings(tmp_path, epochs=3)))
    out = tmp_path / "exported"
    options = {"run": run.path, "out": out, "onnx": True, "torch_export": True}
    report = export(ExportConfig(**options, samples=8))
    assert report.parity.passed
    assert {row.artefact for row in report.parity.rows} == {"transformers", "onnx", "torch_export"}
    model = load_fused(out)
    transformers = pytest.importorskip("transformers")
    classify = transformers.pipeline("image-classification", str(out), trust_remote_code=True)
    file = tmp_path / "colours" / "red" / "05.png"
    (said,) = model.predict([str(file)])
    assert said["image"] == str(file)
    best = classify(str(file))[0]
    assert best["label"] == said["label"]
    assert best["score"] == pytest.approx(said["score"], abs=1e-5)
    assert model.predict(file)[0] == {**said, "image": str(file)}
    sink = io.StringIO()
    predict(PredictConfig(model=out, input=tmp_path / "colours"), sink=sink)
    records = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert len(records) == 60
    assert sum(f"/{each['label']}/" in each["image"] for each in records) > 50
    odd = tmp_path / "odd"
    odd.mkdir()
    red = Image.new("RGB", (30, 20), COLOURS["red"])
    for mode, name in (("L", "grey.png"), ("CMYK", "ink.jpg"), ("P", "few.gif")):
        red.convert(mode).save(odd / name)
        with Image.open(odd / name) as shown:
            assert model.predict([shown])[0]["label"] == classify(shown)[0]["label"]
    assert predict(PredictConfig(model=out, input=odd), sink=io.StringIO()).labelled == 3
    (odd / "broken.png").write_bytes(b"no image")
    with pytest.raises(MediaError, match=r"broken\.png: not an image"):
        predict(PredictConfig(model=out, input=odd), sink=io.StringIO())


def test_ties_count_against_top5() -> None:
    task = Classification([str(n) for n in range(8)], metrics=("top5_accuracy",))
    examples = Labelled([Example("a", (TextInput("x"),), 3)], ("text",))
    judged = task.judge([Outputs({"logits": torch.zeros(1, 8)})], examples)
    assert judged.metrics() == {"top5_accuracy": 0.0}


def test_the_command_line_shows_its_options() -> None:
    shown = CliRunner().invoke(cli.commands, ["train", "--task", "image-classification", "--help"])
    assert {"--image-column", "--patch-drop", "--bad-media"} <= set(shown.output.split())
    assert "--max-words" not in shown.output
