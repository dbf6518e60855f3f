"""`predict` labels texts in order, in flat memory, and says which lines are empty."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SENTENCES
from transformers.utils import logging as hf_logging

from pipeline.fused.loading import NotAnExport, load_exported
from pipeline.fused.records import Record, RecordError, read_records
from pipeline.fused.write import export_model
from pipeline.predict import PredictConfig, PredictError, label, predict


@pytest.fixture
def folder(make: Callable[..., Any], tmp_path: Path) -> Path:
    made = make()
    export_model(made.job(), tmp_path / "model")
    return tmp_path / "model"


def test_lines_keep_their_order_and_empty_ones_are_named(folder: Path) -> None:
    lines = [f"{text}\n" for text in (*SENTENCES, "", *SENTENCES[::-1], "  ")]
    sink, seen = io.StringIO(), []
    config = PredictConfig(model=folder, batch_size=3, device="cpu")
    report = predict(config, source=lines, sink=sink, progress=seen.append)
    rows = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert report.labelled == 10
    assert report.empty_lines == (6, 12)
    assert "6, 12" in report.render()
    assert seen == [10]
    assert [row["line"] for row in rows] == list(range(1, 13))
    assert rows[5] == {"line": 6, "label": None, "score": None, "probabilities": None}
    model = load_exported(folder, "predict")
    for row, text in zip(rows, lines, strict=True):
        if text.strip():
            inputs = model.tokenizer(text.strip(), truncation=True, return_tensors="pt")
            wanted = model(**inputs).logits.softmax(-1)[0]
            found = [row["probabilities"][name] for name in ("bad", "good")]
            torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=0)
            assert row["label"] == ("bad", "good")[int(wanted.argmax())]


def test_windows_are_read_and_written_one_at_a_time(folder: Path) -> None:
    written: list[int] = []
    sink = io.StringIO()

    def lines() -> Iterator[str]:
        for number in range(80):
            written.append(sink.getvalue().count("\n"))
            yield f"{SENTENCES[number % 5]}\n"

    predict(PredictConfig(model=folder, batch_size=2, device="cpu"), source=lines(), sink=sink)
    assert written[32] == 32  # the first window (16 batches of 2) was out before line 33 was read


def test_tables_go_to_tsv(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    table.write_text('id,body\n1,"the cat, sat"\n2,dog\n')
    out = tmp_path / "out.tsv"
    config = PredictConfig(model=folder, input=table, text="body", out=out, format="tsv")
    assert predict(config).labelled == 2
    lines = [line.split("\t") for line in out.read_text().splitlines()]
    assert lines[0] == ["line", "label", "score", "bad", "good"]
    assert [line[0] for line in lines[1:]] == ["2", "3"]
    assert float(lines[1][3]) + float(lines[1][4]) == pytest.approx(1, abs=1e-6)
    with pytest.raises(PredictError, match="exists"):
        predict(config)


def test_separate_pairs(make: Callable[..., Any], tmp_path: Path) -> None:
    made = make("gpt2", pair="separate")
    out = tmp_path / "model"
    export_model(made.job(), out)
    config = PredictConfig(model=out, text="a", text_pair="b", layout="jsonl", device="cpu")
    rows = [{"a": a.text, "b": b.text} for a, b in made.rows]
    sink = io.StringIO()
    predict(config, source=[json.dumps(row) for row in rows], sink=sink)
    both = label(
        load_exported(out, "predict"),
        [Record(i, a.text, b.text) for i, (a, b) in enumerate(made.rows)],
        batch_size=2,
    )
    found = [json.loads(line)["probabilities"]["good"] for line in sink.getvalue().splitlines()]
    wanted = [both[i]["probabilities"]["good"] for i in range(len(found))]
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found == pytest.approx(made.logits().softmax(1)[:, 1].tolist(), abs=1e-3)
    with pytest.raises(PredictError, match="compares two texts"):
        predict(PredictConfig(model=out), source=["x"], sink=sink)


def test_foreign_code_needs_trust(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotAnExport, match="no exported model"):
        load_exported(tmp_path, "predict")
    with (folder / "layers.py").open("a") as file:
        file.write("\n# edited\n")
    with pytest.raises(NotAnExport, match="trust_code"):
        load_exported(folder, "predict")
    model = load_exported(folder, "predict", trust_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    assert not model.training


def test_an_export_loads_in_silence_and_only_with_all_its_weights(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_logging, "_tqdm_active", True)
    capsys.readouterr()
    load_exported(folder, "predict")
    assert capsys.readouterr().err == ""
    weights = load_file(folder / "model.safetensors")
    del weights["towers.text.backbone.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotAnExport, match=r"lacks 1 weight.*layer\.1\.output\.dense\.weight"):
        load_exported(folder, "predict")


@pytest.mark.parametrize(
    ("layout", "lines", "message"),
    [
        ("jsonl", ["{"], "line 1 is not JSON"),
        ("jsonl", ['{"x": 1}'], "line 1 lacks"),
        ("tsv", ["text\tb\n", "a\n"], "line 2 has 1 fields, the header 2"),
        ("csv", ["x,y\n"], "no column"),
    ],
)
def test_unreadable_lines_are_named(layout: Any, lines: list[str], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        list(read_records(lines, layout, text="text", text_pair=None))


def test_plain_pairs_are_split_at_the_tab() -> None:
    found = list(read_records(["a\tb\n", "\n"], "lines", text="text", text_pair="pair"))
    assert found == [(1, "a", "b"), (2, None, None)]
    with pytest.raises(RecordError, match="line 1 has 1 field"):
        list(read_records(["alone"], "lines", text="text", text_pair="pair"))
