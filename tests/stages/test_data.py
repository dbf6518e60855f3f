"""Examples from files: formats, labels, splits, and errors that name the lines."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError
from pipeline.data import DataError, Dataset, Example
from pipeline.inputs import TextInput
from pipeline.reading.config import TextData
from pipeline.reading.splits import split_examples
from pipeline.systems import data_config, load_dataset

ROWS = [{"text": f"{'good' if i % 3 else 'bad'} {i}", "label": "pn"[i % 3 == 0]} for i in range(60)]


def load(**values: Any) -> Dataset:
    return load_dataset(data_config(values))


def examples(data: Dataset, split: str) -> list[Example]:
    return list(data.split(split).examples)


def write_as(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_formats_give_the_same_examples(tmp_path: Path, suffix: str) -> None:
    data = load(train=write_as(tmp_path / f"rows{suffix}", ROWS))
    reference = load(train=write_as(tmp_path / "reference.csv", ROWS))
    assert data.splits.keys() == reference.splits.keys()
    assert all(examples(data, name) == examples(reference, name) for name in data.splits)
    assert data.labels == ("n", "p")
    assert {name: len(rows) for name, rows in data.splits.items()} == {
        "train": 41, "dev": 7, "test": 12,
    }  # fmt: skip
    example = examples(data, "dev")[0]
    number = int(example.id.removeprefix("dev/"))
    assert example.inputs == (TextInput(ROWS[number]["text"]),)
    assert data.labels[int(example.target or 0)] == ROWS[number]["label"]


def test_tsv_has_no_quoting_and_csv_has(tmp_path: Path) -> None:
    tsv, csv = tmp_path / "a.tsv", tmp_path / "a.csv"
    tsv.write_text('text\tlabel\n"to be\tx\nor" not\ty\n' + 'q "s"\tx\nrest\ty\n' * 5)
    csv.write_text('text,label\n"a, ""b""\nc",x\nd,y\n' + "e,x\nf,y\n" * 5)
    test = tmp_path / "t.tsv"
    test.write_text('text\tlabel\n"to be\tx\n')
    assert load(train=tsv, dev=tsv, test=test).split("test").examples[0].inputs[0].text == '"to be'
    assert load(train=csv, dev=csv).split("train").examples[0].inputs[0].text == 'a, "b"\nc'


def test_a_headerless_file_is_read_by_position_with_bad_bytes(tmp_path: Path) -> None:
    path = tmp_path / "scores.txt"
    lines = [f"{i}\t{(i % 9) - 4 + 0.1}\tword {i} caf" for i in range(90)]
    path.write_bytes("\n".join(lines).encode() + b"\xe9\n")
    values = {"train": path, "header": False, "text": 2, "label": 1, "id": "0"}
    values |= {"label_threshold": 0.0, "label_margin": 0.5}
    with pytest.raises(DataError, match=r"not UTF-8.*encoding_errors: replace"):
        load(**values)
    data = load(**values, encoding_errors="replace")
    found = [e for name in data.splits for e in examples(data, name)]
    assert len(found) == 80  # 0.1 lies within the margin
    assert data.labels == ("negative", "positive")
    by_id = {e.id.split("/")[1]: e.target for e in found}
    assert by_id["5"] == 1
    assert by_id["0"] == 0


def test_regression_and_pairs(tmp_path: Path) -> None:
    rows = [{"a": f"x {i}", "b": f"y {i}", "s": i / 7} for i in range(30)]
    path = write_as(tmp_path / "pairs.csv", rows)
    joint = load(task="regression", train=path, text="a", text_pair="b", label="s")
    apart = load(task="regression", train=path, text="a", text_pair="b", label="s", pair="separate")
    assert joint.labels is None
    assert joint.split("train").towers == ("text",)
    assert apart.split("train").towers == ("first", "second")
    first = examples(apart, "train")[0]
    assert first.inputs == (TextInput("x " + first.id[6:]), TextInput("y " + first.id[6:]))
    for tower, end, text in zip(("first", "second"), "ab", first.inputs, strict=True):
        rows = apart.split("train").rows(tower, "text")
        assert rows[0] == (f"{first.id}#{end}", text)
    only = joint.split("train")
    assert only.rows("text", "text")[0] == (only.examples[0].id, only.examples[0].inputs[0])
    assert examples(joint, "train")[0].inputs == (
        TextInput(first.inputs[0].text, first.inputs[1].text),
    )


def test_integer_labels_and_minus_one(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": i % 2 * 2 - 1} for i in range(40)]
    path = write_as(tmp_path / "rows.parquet", rows)
    data = load(train=path)
    assert data.labels == ("-1", "1")
    named = load(train=path, label_names=("1", "-1"))
    pick = {e.inputs: e.target for e in examples(data, "train")}
    assert all(pick[e.inputs] == 1 - e.target for e in examples(named, "train") if e.inputs in pick)


def test_hidden_test_labels_give_no_targets(tmp_path: Path) -> None:
    train = write_as(tmp_path / "train.csv", ROWS)
    for name, rows in {
        "minus": [{"text": "a", "label": -1}, {"text": "b", "label": -1}],
        "absent": [{"text": "a"}, {"text": "b"}],
    }.items():
        data = load(train=train, test=write_as(tmp_path / f"{name}.jsonl", rows))
        assert [e.target for e in examples(data, "test")] == [None, None]
        assert len(examples(data, "dev")) == 9
    partly = write_as(
        tmp_path / "partly.csv", [{"text": "a", "label": "p"}, {"text": "b", "label": ""}]
    )
    with pytest.raises(DataError, match="line 3"):
        load(train=train, test=partly)


def test_bad_rows_name_file_lines_and_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    good = "".join(f"word {i}\t{'xy'[i % 2]}\n" for i in range(20))
    path.write_text(
        "text\tlabel\n" + good + " \tx\nno label\t\none field\n" + good.replace("d", "k")
    )
    with pytest.raises(DataError) as error:
        load(train=path)
    message = str(error.value)
    assert f"{path}: 3 unusable row(s)" in message
    assert "the text is empty: line 22" in message
    assert "the label is missing: line 23" in message
    assert "not 2 fields: line 24" in message
    assert "bad_rows: drop" in message
    assert sum(map(len, load(train=path, bad_rows="drop").splits.values())) == 40
    dev = tmp_path / "dev.tsv"
    dev.write_text("text\tlabel\nfine\tx\nodd\tz\n")
    clean = [{"text": f"a{i}", "label": "xy"[i % 2]} for i in range(8)]
    with pytest.raises(DataError, match=r"unknown label 'z' \(known: x, y\): line 3"):
        load(train=write_as(tmp_path / "clean.tsv", clean), dev=dev)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": "nowhere.tsv"}, "there is no file nowhere.tsv"),
        ({"text": "txt"}, "has no column 'txt'; it has text, label"),
        ({"id": "label"}, "the id 'p' appears twice|the id 'n' appears twice"),
    ],
)
def test_unusable_files(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = write_as(tmp_path / "rows.csv", ROWS)
    with pytest.raises(DataError, match=message):
        load(**({"train": path} | values))


def test_config_errors_come_together() -> None:
    with pytest.raises(ConfigError) as error:
        TextData.build(
            {"train": "x", "task": "snli", "fractions": (0.9, 0.2, 0.1), "label_margin": 1.0}
        )
    for part in ("unknown task 'snli'", "cola", "sum to 1", "label_margin needs"):
        assert part in str(error.value)


@settings(deadline=None, max_examples=25)
@given(
    words=st.lists(st.integers(0, 40), min_size=30, max_size=150),
    seed=st.integers(0, 99),
)
def test_splits_are_seeded_complete_and_keep_equal_texts_together(
    words: list[int], seed: int
) -> None:
    examples = [Example(f"x/{i}", (TextInput(f"w{w}"),), w % 3) for i, w in enumerate(words)]
    parts = split_examples(examples, (0.6, 0.2, 0.2), seed)
    assert parts == split_examples(examples, (0.6, 0.2, 0.2), seed)
    assert Counter(e.id for part in parts for e in part) == Counter(e.id for e in examples)
    texts = [{e.inputs for e in part} for part in parts]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


def test_splits_are_stratified() -> None:
    examples = [Example(f"x/{i}", (TextInput(str(i)),), int(i < 100)) for i in range(1000)]
    parts = split_examples(examples, (0.68, 0.12, 0.2), 1)
    assert [len(p) for p in parts] == [680, 120, 200]
    assert [sum(int(e.target or 0) for e in p) for p in parts] == [68, 12, 20]


def test_a_folder_of_plain_files(tmp_path: Path) -> None:
    write_as(tmp_path / "train.csv", ROWS[:40])
    write_as(tmp_path / "dev.csv", ROWS[40:50])
    write_as(tmp_path / "test.csv", ROWS[50:])
    data = load(train=tmp_path)
    assert [len(data.splits[name]) for name in ("train", "dev", "test")] == [40, 10, 10]
    (tmp_path / "test.csv").unlink()
    assert set(load(train=tmp_path).splits) == {"train", "dev"}
    with pytest.raises(DataError, match="no examples in the split 'test'"):
        examples(load(train=tmp_path), "test")
