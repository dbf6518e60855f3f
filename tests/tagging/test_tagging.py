"""Tagged words from their cache to a model that tags: what a user of the task relies on."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from taggedkit import settings
from tiny import save_tiny

import cli
from cache import Cache
from pipeline.backbones import load_backbone
from pipeline.config import ConfigError
from pipeline.data import Example
from pipeline.evaluate import EvaluateConfig, evaluate, run_setup
from pipeline.export import ExportConfig, export
from pipeline.extract import ExtractConfig, extract
from pipeline.fused.loading import load_fused
from pipeline.predict import PredictConfig, predict
from pipeline.probe import probe
from pipeline.reading.windows import windows_of
from pipeline.run import Run
from pipeline.sweep import SweepConfig, sweep
from pipeline.systems import data_config, load_dataset, train_config
from pipeline.systems.inference import run_passes
from pipeline.tasks.entities import entities, matches
from pipeline.tasks.tagging import Tagging
from pipeline.train import train
from unipt import Outputs
from unipt.words import Words, pooled_words, word_spans


def test_entities_are_counted_as_seqeval_counts_them() -> None:
    golden = json.loads((Path(__file__).parents[1] / "golden/entities.json").read_text())
    pairs = zip(golden["wanted"], golden["given"], strict=True)
    counts = np.array([matches(wanted.split(), given.split()) for wanted, given in pairs])
    for (right, wanted, given), (precision, recall) in zip(counts, golden["each"], strict=True):
        assert (right / max(1, given), right / max(1, wanted)) == pytest.approx((precision, recall))
    right, wanted, given = counts.sum(0)
    assert right / given == pytest.approx(golden["precision"])
    assert right / wanted == pytest.approx(golden["recall"])
    assert 2 * right / (wanted + given) == pytest.approx(golden["f1"])
    assert entities(["I-a", "B-a", "I-a", "I-b", "B-b"]) == {("a", 1, 3), ("b", 4, 5)}


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_spans_are_where_the_tokens_lie(tmp_path: Path, family: str) -> None:
    config = settings(tmp_path)
    if family != "bert":
        save_tiny(family, tmp_path / "other")
    model = load_backbone(str(tmp_path / ("model" if family == "bert" else "other")), device="cpu")
    data = load_dataset(data_config(config["data"]))
    texts = [given for _, given in data.splits["train"].rows("text", "text")][:5]
    backbone = model.with_facts(("spans",))
    states = backbone.forward(backbone.encode(texts), torch.float16)
    assert states["spans"].dtype == torch.float32
    assert len(states["spans"]) == len(states[backbone.taps[0].name])
    pieces = backbone.encode(texts)
    for number, text in enumerate(texts):
        spans = states["spans"][pieces.offsets[number] : pieces.offsets[number + 1]].long()
        shown = [text.text[a:b].strip() for a, b in spans.tolist() if b > a]
        assert "".join(shown) == text.text.replace(" ", "")


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_words_take_the_values_of_their_tokens(pooling: Any) -> None:
    words = [["ab", "c", "def"], ["gh"]]
    spans = torch.tensor([[0, 0], [0, 1], [1, 2], [3, 4], [0, 0], [0, 0], [0, 2]])
    values = torch.arange(7.0)[:, None]
    places = [word_spans(each) for each in words]
    starts, ends = (torch.tensor([p for each in places for p in each[n]]) for n in (0, 1))
    batch = Words(starts, ends, torch.tensor([0, 0, 0, 1]))
    found, seen = pooled_words(values, spans, torch.tensor([0, 5, 7]), batch, pooling)
    assert seen.tolist() == [True, True, False, True]  # "def" was cut away
    assert found[:, 0].tolist() == [1.0 if pooling == "first" else 1.5, 3.0, 0.0, 6.0]


def test_it_learns_and_evaluates_above_its_start(tmp_path: Path) -> None:
    run = train(train_config(settings(tmp_path)))
    assert run.metrics["test"]["entity_f1"] > 0.7
    found = evaluate(EvaluateConfig(run=run.path))
    assert found.unit == "sentences"
    assert found.metrics["entity_f1"].value == pytest.approx(run.metrics["test"]["entity_f1"])
    (record, *_) = [
        json.loads(line) for line in (run.path / "predictions_test.jsonl").read_text().splitlines()
    ]
    assert len(record["tokens"]) == len(record["tags"]) == len(record["target_tags"])
    assert len(record["confidence"]) == len(Run.open(run.path).towers["text"].taps) - 1
    for layers in ("last", "all"):
        found = probe(train_config(settings(tmp_path)), layers).evaluations["test"]
        assert found.metrics["token_accuracy"].value > 0.5


def test_a_sweep_chooses_by_entity_f1(tmp_path: Path) -> None:
    values = settings(tmp_path, "sweep", epochs=10, pruner="none")
    space = {"lr": "3e-2,1e-6", "word_pooling": "first,mean"}
    result = sweep(SweepConfig.build(values | {"space": space, "sampler": "grid"}))
    assert result.metric == "entity_f1"
    assert result.trials[result.best or 0]["params"]["lr"] == 3e-2


def test_cached_is_live_is_exported(tmp_path: Path) -> None:
    windows = {"max_words": 6, "overlap": 3}
    run = train(train_config(settings(tmp_path, windows=windows, epochs=3, word_pooling="mean")))
    out = tmp_path / "exported"
    options = {"run": run.path, "out": out, "onnx": True, "torch_export": True}
    report = export(ExportConfig(**options, samples=8))
    assert report.parity.passed
    assert {row.artefact for row in report.parity.rows} == {"transformers", "onnx", "torch_export"}
    model = load_fused(out)
    lines = (run.path / "predictions_test.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert max(len(record["tokens"]) for record in records) > 6  # read in windows, as in training
    said = model.predict([" ".join(record["tokens"]) for record in records])
    assert said == [{"tokens": each["tokens"], "tags": each["tags"]} for each in records]
    assert model.predict([""]) == [{"tokens": [], "tags": []}]
    transformers = pytest.importorskip("transformers")
    tag = transformers.pipeline("token-classification", str(out), trust_remote_code=True)
    assert {each["entity"] for each in tag("the cat sat on the mat")} <= set(model.labels)
    for form in ("jsonl", "tsv"):
        sink, config = io.StringIO(), PredictConfig(model=out, format=form)
        predict(config, source=["the cat sat", "", "a dog ran"], sink=sink)
        lines = sink.getvalue().splitlines()
        if form == "jsonl":
            assert [json.loads(line)["line"] for line in lines] == [1, 2, 3]
            assert json.loads(lines[1])["tags"] is None
        else:
            assert lines[0::2] == ["line\ttokens\ttags", "2\t\t"]
            assert lines[1].startswith("1\tthe cat sat\t")


def test_a_cache_without_spans_is_refused_by_name(tmp_path: Path) -> None:
    values = settings(tmp_path)
    texts = tmp_path / "texts.tsv"
    texts.write_text("text\tlabel\n" + "".join(f"the cat {n}\t{n % 2}\n" for n in range(40)))
    data = {"task": "classification", "train": str(texts)}
    where = {"backbone": str(tmp_path / "model"), "device": "cpu"}
    extract(ExtractConfig.build({"data": data, "out": str(tmp_path / "plain"), **where}))
    with pytest.raises(ConfigError, match="lacks spans"):
        train(train_config(values | {"cache": str(tmp_path / "plain")}))
    asked = {"data": data, "out": str(tmp_path / "asked"), "spans": True, **where}
    extract(ExtractConfig.build(asked))
    assert "spans" in [tap.name for tap in Cache.open(tmp_path / "asked").taps]


def test_dropped_tokens_take_their_spans_with_them(tmp_path: Path) -> None:
    run = train(train_config(settings(tmp_path, epochs=2, token_drop=0.4, noise=0.1)))
    setup = run_setup(Run.open(run.path), ("test",))
    (found,) = run_passes(Run.open(run.path).model(), setup, setup.splits["test"], batch_size=4)
    assert len(found.values["spans"]) == len(found.values["logits"])


def test_a_word_without_a_token_is_outside(tmp_path: Path) -> None:
    labels = ("B-x", "I-x", "O")
    task = Tagging(labels, entities=True)
    example = Example("test/0", (), (("one", "two"), (0, 2)))
    examples = windows_of([example], most=9, overlap=0)
    values = {"logits": torch.eye(3)[:1], "spans": torch.tensor([[0.0, 3.0]])}  # "two" is cut away
    found = Outputs(values, dict.fromkeys(values, torch.tensor([0, 1])))
    judged = task.judge([found], examples)
    (record,) = judged.records()["predictions"]
    assert record["tags"] == ["B-x", "O"]
    assert judged.extras() == {"words_without_token": 1}
    assert judged.metrics()["token_accuracy"] == 1


def test_the_command_line_shows_its_options_and_plans_windows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = settings(tmp_path)
    shown = CliRunner().invoke(cli.commands, ["train", "--task", "tagging", "--help"])
    assert {"--max-words", "--scheme", "--word-pooling"} <= set(shown.output.split())
    assert "--image-column" not in shown.output
    options = ["--task", "tagging", "--train", values["data"]["train"], "--max-words", "6"]
    options += ["--overlap", "2", "--device", "cpu", "--trial-seconds", "0.1"]
    told = CliRunner().invoke(cli.commands, ["plan", str(tmp_path / "model"), *options])
    assert told.exit_code == 0, told.output
    assert "spans" in told.stdout
    assert "longer than 6 words (max_words) are read in windows" in caplog.text
