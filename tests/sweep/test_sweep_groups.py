"""Folds and splits by group: rows of one group are never on both sides."""

import json
from pathlib import Path

import pytest
from stagekit import build_cache
from sweepkit import outcome, sweep_config

from pipeline.config import ConfigError
from pipeline.data import DataError, Example, Labelled, clusters
from pipeline.inputs import TextInput
from pipeline.reading.config import TextData
from pipeline.sweep import sweep
from pipeline.sweep.trainer import Trainer
from pipeline.systems import load_dataset
from pipeline.systems.locate import Located
from pipeline.training.setup import assign_folds, identity, prepare

AUTHORS = 12


def write_authors(path: Path, count: int = 72, authors: int = AUTHORS, missing: int = -1) -> Path:
    """Write rows of several authors; row `missing` has none."""
    lines = ["text\tlabel\tauthor"]
    for row in range(count):
        author = "" if row == missing else f"author {row % authors}"
        label = ("bad", "good")[row // authors % 2]
        lines.append(f"{label} number {row}\t{label}\t{author}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def grouped(tmp_path: Path, **changes):
    """Return the configuration of a sweep over the authors' rows, written on first use."""
    file = tmp_path / "authors.tsv"
    if not file.exists():
        dataset = load_dataset(TextData(train=write_authors(file)))
        texts = [split.inputs("text", "text") for split in dataset.splits.values()]
        build_cache(tmp_path / "cache", [text for part in texts for text in part])
    data = {"train": str(file), "metrics": ["accuracy"], "group_column": "author"}
    values = {"data": data, "trials": 2, "folds": 3, "epochs": 2, "refit": "none"} | changes
    return sweep_config(tmp_path, **values)


def example(text: str, group: str | None) -> Example:
    return Example("train/0", (TextInput(text),), 0, group)


def test_texts_and_groups_chain():
    rows = [("a", "x"), ("b", "x"), ("b", "y"), ("c", "y"), ("d", "z"), ("e", None), ("d", None)]
    one, two, three, four, five, six, seven = clusters([example(*row) for row in rows])
    assert one == two == three == four
    assert five == seven
    assert len({one, five, six}) == 3
    assert clusters([example("a", None), example("b", None), example("a", None)]) == [0, 1, 0]


def test_no_group_is_in_two_splits_or_two_folds(tmp_path):
    config = grouped(tmp_path)
    run = config.run
    splits = load_dataset(run.data).splits
    authors = {name: {row.group for row in rows.examples} for name, rows in splits.items()}
    assert set(authors) == {"train", "dev", "test"}
    assert sum(len(found) for found in authors.values()) == AUTHORS
    trainer = Trainer(config)

    def groups(fold: int, split: str) -> set[str | None]:
        return {e.group for e in trainer.setup(run, fold).splits[split].examples.examples}

    held = [groups(fold, "dev") for fold in range(3)]
    assert sum(len(found) for found in held) == len(authors["train"])
    assert set().union(*held) == authors["train"]
    for number, fold in enumerate(held):
        assert groups(number, "train") == authors["train"] - fold


def test_a_sweep_scores_by_folds_of_groups(tmp_path):
    result = sweep(grouped(tmp_path))
    assert result.best is not None
    told = json.loads((result.path / "sweep.json").read_text())["config"]
    assert told["run"]["data"]["group_column"] == "author"
    plain = sweep(grouped(tmp_path, out="plain", data=plain_data(tmp_path)))
    assert outcome(plain.path) != outcome(result.path)


def plain_data(tmp_path: Path) -> dict[str, str | list[str]]:
    return {"train": str(tmp_path / "authors.tsv"), "metrics": ["accuracy"]}


def test_too_few_groups_are_refused_before_anything_runs(tmp_path):
    config = grouped(tmp_path, folds=11)
    with pytest.raises(ConfigError, match=r"(?s)11 folds of \d groups of training .*take fewer"):
        sweep(config)
    assert not config.out.exists()
    with pytest.raises(ConfigError, match=r"3 folds of 2 groups"):
        rows = [example("a", "x"), example("b", "x"), example("c", "y")]
        assign_folds(Located(examples=Labelled(rows, ("text",)), samples={}, keys={}), 3, 0)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    file = write_authors(tmp_path / "rows.tsv")
    with pytest.raises(DataError, match=r"no column 'writer'; it has text, label, author"):
        load_dataset(TextData(train=file, group_column="writer"))
    write_authors(file, missing=4)
    with pytest.raises(DataError, match="the group is missing"):
        load_dataset(TextData(train=file, group_column="author"))


def test_a_test_file_needs_no_groups(tmp_path, caplog):
    file = write_authors(tmp_path / "rows.tsv")
    other = tmp_path / "test.tsv"
    other.write_text("text\tlabel\nbad other\tbad\ngood other\tgood\n")
    data = TextData(train=file, test=other, group_column="author")
    assert {row.group for row in load_dataset(data).split("test").examples} == {None}
    load_dataset(data.model_copy(update={"test": file}))  # 12 of 72 rows are split off as dev
    assert "60 test example(s) share a group with training rows" in caplog.text


def test_the_group_column_is_part_of_what_a_run_is(tmp_path):
    run = grouped(tmp_path).run
    plain = run.model_copy(update={"data": run.data.model_copy(update={"group_column": None})})
    assert json.loads(identity(run, prepare(run)))["config"]["data"]["group_column"] == "author"
    assert identity(run, prepare(run)) != identity(plain, prepare(plain))
