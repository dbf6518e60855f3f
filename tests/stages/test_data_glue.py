"""The eight GLUE tasks in their official files and in the hub's columns; the split rule."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline.data import DataError, Dataset
from pipeline.reading.glue import TASKS
from pipeline.systems import data_config, load_dataset

PAIR_HEADS = {
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\tfirst {i}\tsecond {i}"),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "{i}\t1\t2\tfirst {i}\tsecond {i}\t1",
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "{i}\tnews\tf\t2012\t1\tn\tn\tfirst {i}\tsecond {i}\t3.5",
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "{i}\tfirst {i}\tsecond {i}\tnot_entailment"),
    "rte": ("index\tsentence1\tsentence2\tlabel", "{i}\tfirst {i}\tsecond {i}\tnot_entailment"),
}
MNLI_HEAD = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label"
)
MNLI_ROW = "{i}\tp\tq\tg\tb\tb\tp\tp\tfirst {i}\tsecond {i}\tneutral\tneutral"
HUB = {
    "cola": ("sentence",), "sst2": ("sentence",), "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"), "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"), "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}  # fmt: skip


def load(task: str, train: Path, **values: Any) -> Dataset:
    return load_dataset(data_config({"task": task, "train": train} | values))


def sizes(data: Dataset) -> dict[str, int]:
    return {name: len(rows) for name, rows in data.splits.items()}


def write(path: Path, head: str | None, row: str, count: int, start: int = 0) -> None:
    lines = ([head] if head else []) + [row.format(i=i) for i in range(start, start + count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")


def test_cola_without_header_and_hidden_test_with_one(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", None, 'gj04\t1\t\t"quoted {i}', 30)
    write(tmp_path / "dev.tsv", None, "gj04\t0\t*\tdev {i}", 10)
    write(tmp_path / "test.tsv", "index\tsentence", "{i}\ttest {i}", 5)
    data = load("cola", tmp_path)
    assert sizes(data) == {"train": 30, "dev": 5, "test": 5}
    assert data.labels == ("unacceptable", "acceptable")
    assert data.split("train").examples[0].inputs[0].text == '"quoted 0'
    assert {e.target for e in data.split("train").examples} == {1}
    assert {e.inputs[0].text for s in ("dev", "test") for e in data.split(s).examples} == {
        f"dev {i}" for i in range(10)
    }
    explicit = load("cola", tmp_path, test=tmp_path / "test.tsv")
    assert sizes(explicit) == {"train": 30, "dev": 10, "test": 5}
    assert {e.target for e in explicit.split("test").examples} == {None}


def test_sst2_takes_a_thousand_training_rows_as_dev(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", "sentence\tlabel", "review {i}\t1", 2500)
    write(tmp_path / "dev.tsv", "sentence\tlabel", "other {i}\t0", 20)
    write(tmp_path / "test.tsv", "index\tsentence", "{i}\thidden {i}", 5)
    data = load("sst2", tmp_path)
    assert sizes(data) == {"train": 1500, "dev": 1000, "test": 20}
    assert data.split("test").examples[3].inputs[0].text == "other 3"


@pytest.mark.parametrize("task", sorted(PAIR_HEADS))
def test_official_pair_files(tmp_path: Path, task: str) -> None:
    head, row = PAIR_HEADS[task]
    write(tmp_path / "train.tsv", head, row, 40)
    write(tmp_path / "dev.tsv", head, row, 10, start=40)
    data = load(task, tmp_path)
    first = data.split("train").examples[0]
    number = first.id.removeprefix("train/")
    assert tuple(first.inputs[0]) == (f"first {number}", f"second {number}")
    assert first.target == (3.5 if task == "stsb" else 1)
    assert len(data.split("test").examples) == (10 if TASKS[task].rule == "thousand" else 5)


def test_mrpc_with_its_own_file_names_has_test_labels(tmp_path: Path) -> None:
    head, row = PAIR_HEADS["mrpc"]
    write(tmp_path / "msr_paraphrase_train.txt", head, row, 40)
    write(tmp_path / "msr_paraphrase_test.txt", head, row, 12, start=40)
    assert sizes(load("mrpc", tmp_path)) == {"train": 34, "dev": 6, "test": 12}


def test_mnli_uses_mismatched_as_dev_and_matched_as_test(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", MNLI_HEAD, MNLI_ROW, 30)
    write(tmp_path / "dev_matched.tsv", MNLI_HEAD, MNLI_ROW, 8, start=100)
    write(tmp_path / "dev_mismatched.tsv", MNLI_HEAD, MNLI_ROW, 6, start=200)
    data = load("mnli", tmp_path)
    assert sizes(data) == {"train": 30, "dev": 6, "test": 8}
    assert data.labels == ("entailment", "neutral", "contradiction")
    assert data.split("dev").examples[0].inputs[0].text == "first 200"
    assert {e.target for e in data.split("test").examples} == {1}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_hub_folders(tmp_path: Path, task: str) -> None:
    names = TASKS[task].labels
    label = datasets.Value("float32") if names is None else datasets.ClassLabel(names=list(names))
    features = datasets.Features(
        {column: datasets.Value("string") for column in HUB[task]}
        | {"label": label, "idx": datasets.Value("int32")}
    )

    def split(mark: str, count: int, hidden: bool = False) -> datasets.Dataset:
        columns = {c: [f"{mark} {c} {i}" for i in range(count)] for c in HUB[task]}
        targets = [-1 if hidden else i % 2 for i in range(count)]
        return datasets.Dataset.from_dict(
            columns | {"label": targets, "idx": list(range(count))}, features=features
        )

    parts = {"train": split("train", 40)}
    if task == "mnli":
        parts |= {"validation_matched": split("m", 8), "validation_mismatched": split("mm", 8)}
        parts |= {"test_matched": split("t", 4, True), "test_mismatched": split("tm", 4, True)}
    else:
        parts |= {"validation": split("v", 8), "test": split("t", 4, True)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "hub"))
    data = load(task, tmp_path / "hub")
    expected = {"halves": (40, 4, 4), "thousand": (20, 20, 8), "mnli": (40, 8, 8)}[TASKS[task].rule]
    assert tuple(sizes(data).values()) == expected
    assert all(e.target is not None for rows in data.splits.values() for e in rows.examples)
    assert data.labels == names


def test_class_names_of_a_datasets_folder_and_the_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zebra", "ape"])}
    )
    rows = {"text": [f"t {i}" for i in range(30)], "label": [i % 2 for i in range(30)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "one"))
    data = load("classification", tmp_path / "one")
    assert data.labels == ("zebra", "ape")
    assert sum(sizes(data).values()) == 30
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises((DataError, ImportError), match=r"pip install 'unipt\[datasets\]'"):
        load("classification", tmp_path / "one")
