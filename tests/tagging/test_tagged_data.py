"""Tagged words from their files: formats, schemes, windows, and errors that name the lines."""

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from taggedkit import sentences, write_conll

from pipeline.config import ConfigError
from pipeline.data import Dataset
from pipeline.errors import DataError
from pipeline.inputs import TextInput
from pipeline.systems import data_config, load_dataset, system_of

GOOD = [{"tokens": [w for w, _ in s], "tags": [t for _, t in s]} for s in sentences()]


def load(path: Path, **options: Any) -> Dataset:
    return load_dataset(data_config({"task": "tagging", "train": str(path)} | options))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_conll_jsonl_and_parquet_are_the_same_sentences(tmp_path: Path) -> None:
    conll = load(write_conll(tmp_path / "words.conll"))
    lines = write_jsonl(tmp_path / "words.jsonl", GOOD)
    pandas = pytest.importorskip("pandas", reason="only writes the file that is read")
    pandas.DataFrame(GOOD).to_parquet(tmp_path / "words.parquet")
    for other in (load(lines), load(tmp_path / "words.parquet")):
        assert other.labels == conll.labels
        for split, examples in conll.splits.items():
            assert other.splits[split].windows == examples.windows
    assert conll.labels == ("O", "B-animal", "I-animal", "B-place")


def test_datasets_folders_name_their_tags(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra reads its folders")
    names = ["O", "B-animal", "I-animal", "B-place"]
    rows = sentences()
    columns = {
        "tokens": [[word for word, _ in each] for each in rows],
        "ner_tags": [[names.index(tag) for _, tag in each] for each in rows],
    }
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=names)),
        }
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    found = load(tmp_path / "saved")
    plain = load(write_conll(tmp_path / "words.conll"))
    assert found.labels == tuple(names)
    assert found.splits["train"].windows == plain.splits["train"].windows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one\tO\ntwo\n", "line 2 has no tag"),
        ("", "no sentence"),
        ("a\tB-x\nb\tI-y\n\nc\tO\nd\tB-x\n", "I-y begins no entity"),
        ("a\tO\n\nb\tO\n", "show 1 tag"),
        ("a\tO\nb\t\n\nc\tB-x\n", "a tag is missing: line 1"),
        ("a\nb\n\nc\n", "no column of tags"),
    ],
)
def test_bad_conll_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.conll"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        load(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": "John lives", "tags": ["O", "O"]}, "no list of texts"),
        ({"tokens": ["John"], "tags": ["O", "O"]}, "not as many"),
        ({"tokens": ["John", " "], "tags": ["O", "O"]}, "a word is empty"),
        ({"tokens": ["John"], "tags": [3]}, "tag_names"),
        ({"tokens": [], "tags": []}, "no word"),
        ({"tokens": ["John"], "tags": "O"}, "the tags are no list"),
        ({"tokens": ["John"], "tags": None}, "the tags are missing"),
        ({"tokens": ["John"], "tags": [None]}, "a tag is missing"),
    ],
)
def test_bad_rows_are_named_or_dropped(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*GOOD, row])
    with pytest.raises(DataError, match=said):
        load(path)
    assert sum(load(path, bad_rows="drop").dropped.values()) == 1


def test_long_sentences_are_windows_whose_own_words_are_the_sentence(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(50)]
    rows = [{"tokens": words, "tags": ["O", "B-x"] * 25}] * 3
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = load(path, max_words=16, overlap=6, dev=str(path), test=str(path))
    split = data.splits["train"]
    assert max(len(window.words) for window in split.windows) == 16
    for number in range(3):
        own = [w for w in split.windows if w.sentence == number]
        assert [word for w in own for word in w.words[w.own[0] : w.own[1]]] == words
        for before, after in itertools.pairwise(own):
            assert before.first + len(before.words) - after.first >= 6
    assert len(set(split.groups)) == 1  # equal sentences, and all windows of one, stay together


def test_a_conll_file_may_have_columns_documents_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "rows.conll"
    path.write_text(
        "-DOCSTART- -X- -X- O\n\nThe DT B-NP O\nU.N. NNP I-NP B-ORG\n\r\n"
        "# id 7 of 9\tdomain=train\n#\t_\tO\nParis\t_\tB-LOC\n\n" * 4
    )
    splits: Any = load(path).splits.values()
    found = {window.words for split in splits for window in split.windows}
    assert found == {("The", "U.N."), ("#", "Paris")}


def test_conll_u_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "en.conllu"
    path.write_text("1\tThe\tthe\tDET\n")
    with pytest.raises(DataError, match="write it as a word, a tab and its tag"):
        load(path)


def test_rows_none_of_which_is_usable_say_why(tmp_path: Path) -> None:
    rows = [{"tokens": ["a"], "tags": [0]}, {"tokens": ["b"], "tags": [1]}] * 9
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    for bad_rows in ("error", "drop"):
        with pytest.raises(DataError, match="name them in order with `tag_names`"):
            load(path, bad_rows=bad_rows)
    assert load(path, tag_names=("X", "Y")).labels == ("X", "Y")
    with pytest.raises(DataError, match="tag number 1 is none of the 1 named tags"):
        load(path, tag_names=("X",))
    with pytest.raises(ConfigError, match="tag_names has duplicates"):
        load(path, tag_names=("X", "X"))


def test_tags_that_are_no_entities_stand_for_themselves(tmp_path: Path) -> None:
    tags = {"the": "DET", "a": "DET", "cat": "NOUN", "dog": "NOUN"}
    rows = [{"words": r["tokens"], "pos": [tags.get(w, "X") for w in r["tokens"]]} for r in GOOD]
    path = write_jsonl(tmp_path / "pos.jsonl", rows)
    with pytest.raises(DataError, match="Name it with `tokens_column`"):
        load(path)
    own = {"tokens_column": "words", "tags_column": "pos"}
    system = system_of("tagging")
    for scheme in ("auto", "plain"):
        data = load(path, scheme=scheme, **own)
        assert set(data.labels or ()) == {"X", "DET", "NOUN"}
        assert system.task(data).metrics == ("token_accuracy", "macro_f1")
    with pytest.raises(DataError, match="'DET' is none of B-TYPE, I-TYPE and O"):
        load(path, scheme="iob2", **own)
    with pytest.raises(ConfigError, match="entity_f1"):
        system.task(load(path, metrics=("entity_f1",), **own))
    entities = write_conll(tmp_path / "words.conll")
    assert system.task(load(entities)).metrics[0] == "entity_f1"
    assert system.task(load(entities, scheme="plain")).metrics[0] == "token_accuracy"
    assert system.task(load(entities, metrics=("macro_f1",))).metrics == ("macro_f1",)


def test_a_test_file_may_hide_all_its_tags(tmp_path: Path) -> None:
    train = write_conll(tmp_path / "words.conll")
    words = [["the", "cat"], ["a", "film"]]
    bare = tmp_path / "test.conll"
    bare.write_text("\n\n".join("\n".join(each) for each in words) + "\n")
    rows = [{"tokens": each} for each in words]
    absent = write_jsonl(tmp_path / "absent.jsonl", rows)
    empty = write_jsonl(tmp_path / "empty.jsonl", [row | {"tags": None} for row in rows])
    for path in (bare, absent, empty):
        test: Any = load(train, test=str(path)).splits["test"]
        assert test.hidden
        assert [list(window.words) for window in test.windows] == words
    some = [rows[0] | {"tags": ["O", "O"]}, rows[1] | {"tags": None}]
    with pytest.raises(DataError, match="the tags are missing: line 2"):
        load(train, test=str(write_jsonl(tmp_path / "some.jsonl", some)))
    with pytest.raises(DataError, match="no column of tags"):
        load(train, dev=str(bare))
    none = [{"tokens": each, "tags": ["O", "O"]} for each in words]  # no entity at all
    data = load(train, test=str(write_jsonl(tmp_path / "none.jsonl", none)))
    assert [w.tags for w in data.split("test").windows] == [(0, 0), (0, 0)]


def test_tags_that_training_does_not_show_are_named(tmp_path: Path) -> None:
    train = write_conll(tmp_path / "words.conll")
    other = write_jsonl(tmp_path / "test.jsonl", [{"tokens": ["Ada"], "tags": ["B-person"]}])
    with pytest.raises(DataError, match=r"unknown tag 'B-person' .*name all of them with"):
        load(train, test=str(other))
    names = ("O", "B-animal", "I-animal", "B-place", "B-person")
    assert load(train, test=str(other), tag_names=names).labels == names


def test_the_dev_rows_may_be_trained_on(tmp_path: Path) -> None:
    path = write_conll(tmp_path / "words.conll")
    usual, last = load(path), load(path, fit_on_dev=True)
    assert "dev" not in last.splits
    counts = [dict(usual.splits[name].counts) for name in ("train", "dev")]
    assert dict(last.splits["train"].counts) == {k: sum(c[k] for c in counts) for k in counts[0]}


def test_words_keep_the_spaces_that_they_hold(tmp_path: Path) -> None:
    rows = [{"tokens": ["New York", "1\u00a0000", "a\nb"], "tags": ["B-x", "O", "O"]}] * 9
    data = load(write_jsonl(tmp_path / "rows.jsonl", rows), dev=str(tmp_path / "rows.jsonl"))
    train: Any = data.splits["train"]
    assert train.windows[0].words == ("New York", "1\u00a0000", "a\nb")
    assert train.inputs("text", "text")[0] == TextInput("New York 1\u00a0000 a\nb")


def test_windows_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="overlap must be less than max_words, not 32 of 20"):
        load(write_conll(tmp_path / "words.conll"), max_words=20)


def test_long_sentences_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_conll(tmp_path / "words.conll")
    load(path)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        load(path, max_words=6, overlap=1)
    assert "sentences longer than 6 words (max_words) are read in windows" in caplog.text
