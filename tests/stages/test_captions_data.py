"""Captioned data: any captions file, the checks with their messages, the splits."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from captionkit import load, pairs, sizes, touch

from pipeline.config import ConfigError
from pipeline.inputs import ImageInput, TextInput, VideoInput
from pipeline.reading.config import CaptionData
from pipeline.reading.tables import DataError


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return touch(tmp_path / "data", *(f"p{i}.png" for i in range(20)))


ROWS = [{"image": f"p{i}.png", "caption": f"{word} {i}"} for i in range(20) for word in "ab"]
LISTS = [{"image": f"p{i}.png", "captions": [f"a {i}", f"b {i}"]} for i in range(20)]


# --- any captions file


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("rows", [ROWS, LISTS], ids=["rows", "lists"])
def test_formats_give_the_same_data(pictures: Path, suffix: str, rows: list) -> None:
    if rows is LISTS and suffix in (".csv", ".tsv"):
        rows = [{"video_id": r["image"][:-4], "sentence": r["caption"]} for r in ROWS]  # stems
    data = load(train=write_rows(pictures / f"captions{suffix}", rows))
    reference = load(train=write_rows(pictures / "reference.csv", ROWS))
    assert sizes(data) == {"train": 14, "dev": 2, "test": 4}
    for name, split in data.splits.items():
        assert [item.path for item in split.items] == [
            item.path for item in reference.split(name).items
        ]
        assert [c.text for c in split.captions] == [c.text for c in reference.split(name).captions]
        assert split.item_of.tolist() == np.repeat(np.arange(len(split.items)), 2).tolist()
    assert (data.dropped, data.unused) == ({}, ())


def test_a_json_mapping_and_json_lines_called_json(pictures: Path) -> None:
    mapping, lines, one = (pictures / f"{name}.json" for name in ("mapping", "lines", "one"))
    mapping.write_text(json.dumps({"p0.png": "only", "p1.png": ["b", "c"], "p2": ["d"]}))
    lines.write_text('{"file": "p0", "text": "only"}\n{"file": "p1", "text": ["b", "c"]}\n')
    one.write_text('{"file": "p0", "text": "only"}\n')
    assert pairs(load(train=mapping, dev=mapping).split("train")) == [
        ("p0.png", "only"), ("p1.png", "b"), ("p1.png", "c"), ("p2", "d"),
    ]  # fmt: skip
    assert pairs(load(train=lines, dev=one).split("train"))[1:] == [("p1", "b"), ("p1", "c")]
    assert pairs(load(train=lines, dev=one).split("dev")) == [("p0", "only")]


def test_columns_by_name_and_by_position(pictures: Path) -> None:
    path = pictures / "odd.tsv"
    path.write_text("first\tp3.png\nsecond\tp4.png\n")
    by_position = load(train=path, dev=path, header=False, media_column=1, caption_column=0)
    assert pairs(by_position.split("train")) == [("p3.png", "first"), ("p4.png", "second")]
    path.write_text("says\tshows\nfirst\tp3.png\n")
    named = load(train=path, dev=path, media_column="shows", caption_column="says")
    assert pairs(named.split("train")) == [("p3.png", "first")]


def test_a_folder_finds_its_captions_files(pictures: Path) -> None:
    write_rows(pictures / "metadata.csv", ROWS)
    assert len(load(train=pictures).splits) == 3
    write_rows(pictures / "train.csv", ROWS[:20])
    write_rows(pictures / "val.jsonl", ROWS[20:30])
    write_rows(pictures / "test.csv", ROWS[30:])
    assert sizes(load(train=pictures)) == {"train": 10, "dev": 5, "test": 5}
    assert len(load(train=pictures, test=pictures / "val.jsonl").split("test").items) == 5


def test_media_elsewhere_in_folders_and_without_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "clips", "a/x.mp4", "b/x.mp4", "b/c/y.webm", "z.gif", ".hidden/z.gif")
    path = write_rows(
        tmp_path / "captions.csv",
        [{"video": name, "caption": "c"} for name in ("a/x", "b/x.mp4", "y", "c/y.webm", "z")],
    )
    split = load(train=path, dev=path, media=tmp_path / "clips", bad_rows="drop").split("train")
    found = [item.path.relative_to(tmp_path / "clips").as_posix() for item in split.items]
    assert found == ["a/x.mp4", "b/x.mp4", "b/c/y.webm", "z.gif"]  # c/y.webm is a second name


def test_each_caption_and_each_item_is_an_input_once(pictures: Path) -> None:
    data = load(train=write_rows(pictures / "captions.csv", ROWS))
    texts = [row for split in data.splits.values() for row in split.rows("text", "text")]
    assert len(dict(texts)) == len(texts) == len({value for _, value in texts}) == 40
    assert {value.text for _, value in texts} == {row["caption"] for row in ROWS}
    assert all(isinstance(value, TextInput) for _, value in texts)
    first = data.split("train").items[0]
    assert texts[0][0] == f"train/{first.id}#0"
    for modality, kind in (("image", ImageInput), ("video", VideoInput)):
        media = [row for split in data.splits.values() for row in split.rows("media", modality)]
        assert len(dict(media)) == len(media) == len({value.path for _, value in media}) == 20
        assert media[0] == (f"train/{first.id}", kind(first.path))
    with pytest.raises(DataError, match=r"no examples in the split 'val'; there are: train \(28\)"):
        data.split("val")


def test_an_example_is_a_caption_with_its_item(pictures: Path) -> None:
    split = load(train=write_rows(pictures / "captions.csv", ROWS)).split("train")
    owners = [split.items[place].path for place in split.item_of]
    assert [given.path for given in split.inputs("media", "video")] == owners
    texts = [given.text for given in split.inputs("text", "text")]
    assert texts == [caption.text for caption in split.captions]
    assert len(split) == len(split.captions) == split.counts["captions"]
    assert split.counts["items"] == len(split.items)


def test_some_captions_are_taken_with_the_items_that_they_speak_of(pictures: Path) -> None:
    path = write_rows(pictures / "captions.csv", ROWS)
    split = load(train=path, dev=path).split("train")
    rows = np.array([1, 2, 3, 16, 30])
    less = split.take(rows)
    assert pairs(less) == [pairs(split)[row] for row in rows]
    assert [item.id for item in less.items] == ["p0.png", "p1.png", "p8.png", "p15.png"]
    assert less.item_of.dtype == np.int64
    assert less.groups == [split.groups[row] for row in rows]
    assert less.first_of.tolist() == [0, 1, 3, 4]
    assert pairs(split.take(np.arange(len(split)))) == pairs(split)


# --- splits


def test_groups_stay_in_one_split(tmp_path: Path) -> None:
    names = [f"e{i}.png" for i in range(300)]
    rows = [
        {"image": name, "caption": str(i), "concept": f"g{i // 3}"} for i, name in enumerate(names)
    ]
    path = write_rows(touch(tmp_path, *names) / "captions.csv", rows)
    data = load(train=path, group_column="concept")
    groups = {
        name: {int(item.id[1:-4]) // 3 for item in split.items}
        for name, split in data.splits.items()
    }
    assert sum(map(len, groups.values())) == 100  # none is in two
    assert sizes(data) == {"train": 204, "dev": 36, "test": 60}
    again, other = (load(train=path, group_column="concept", split_seed=s) for s in (0, 1))
    assert pairs(again.split("test")) == pairs(data.split("test")) != pairs(other.split("test"))


def test_a_missing_dev_is_split_off_and_a_given_test_kept(pictures: Path) -> None:
    train = write_rows(pictures / "a.csv", ROWS[:30])
    test = write_rows(pictures / "b.csv", ROWS[30:])
    data = load(train=train, test=test)
    assert sizes(data) == {"train": 13, "dev": 2, "test": 5}


def test_shared_items_are_warned_of(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_rows(pictures / "captions.csv", ROWS)
    load(train=path, dev=path)
    assert "20 dev item(s) are in the training rows too" in caplog.text


def test_too_few_groups_are_an_error(pictures: Path) -> None:
    path = write_rows(pictures / "captions.csv", [row | {"g": "one"} for row in ROWS])
    with pytest.raises(DataError, match=r"the split '\w+' is empty \(\w+ 20\); give a file"):
        load(train=path, group_column="g")


# --- bad input: each with its message, counted, nothing lost

BAD = [
    ({"image": "nothing.png", "caption": "x"}, "there is no such file in"),
    ({"image": "../secret.png", "caption": "x"}, "the media name leaves the media folder"),
    ({"image": "sub/../../secret.png", "caption": "x"}, "the media name leaves the media folder"),
    ({"image": "..\\secret.png", "caption": "x"}, "the media name leaves the media folder"),
    ({"image": "/etc/hostname", "caption": "x"}, "the media name leaves the media folder"),
    ({"image": "C:\\a.png", "caption": "x"}, "the media name leaves the media folder"),
    ({"image": "a\0b.png", "caption": "x"}, "the media name leaves the media folder"),
    ({"image": "y" * 5000, "caption": "x"}, "there is no such file in"),
    ({"image": " ", "caption": "x"}, "the media name is missing"),
    ({"image": None, "caption": "x"}, "the media name is missing"),
    ({"image": "p3.png", "caption": " \t"}, "the caption is empty"),
    ({"image": "p3.png", "caption": None}, "the caption is missing"),
    ({"image": "p3.png", "caption": []}, "the caption is missing"),
    ({"image": "p3.png", "caption": [["a", "b"]]}, "the caption is not a text"),
    ({"image": "./p3.png", "caption": "x"}, "the id is a second name of the file of 'p3.png'"),
    ({"image": "p3", "caption": "x"}, "the id is a second name of the file of 'p3.png'"),
    ({"image": "twice", "caption": "x"}, "several files fit (twice.gif, twice.jpg)"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_rows(
    pictures: Path, row: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    touch(pictures, "twice.jpg", "twice.gif", "../secret.png")
    path = write_rows(pictures / "captions.jsonl", [*ROWS[:8], row, *ROWS[8:]])
    with pytest.raises(DataError) as caught:
        load(train=path)
    assert f"{path}: 1 unusable row(s): {message}" in str(caught.value)
    assert "(line 9)" in str(caught.value)
    assert "`bad_rows: drop`" in str(caught.value)
    data = load(train=path, bad_rows="drop")
    assert [sum(data.dropped.values()), sum(len(s.captions) for s in data.splits.values())] == [
        1, 40,
    ]  # fmt: skip
    assert "1 unusable row(s)" in caplog.text
    assert "(left out)" in caplog.text


def test_many_bad_rows_are_counted_and_the_first_few_named(pictures: Path) -> None:
    gone = [{"image": f"gone{i}.png", "caption": "x"} for i in range(12)]
    empty = [{"image": "p0.png", "caption": ""} for _ in range(3)]
    path = write_rows(pictures / "captions.jsonl", ROWS + gone + empty)
    with pytest.raises(DataError, match=r"15 unusable row\(s\)") as caught:
        load(train=path)
    message = str(caught.value)
    assert "'gone4.png' (line 45) and 7 more" in message
    assert "gone5" not in message
    assert "the caption is empty: 'p0.png' (line 53), 'p0.png' (line 54)" in message
    assert sorted(load(train=path, bad_rows="drop").dropped.values()) == [3, 12]


def test_every_split_is_reported_at_once(pictures: Path) -> None:
    bad = [{"image": "gone.png", "caption": "x"}]
    train = write_rows(pictures / "train.csv", ROWS + bad)
    dev = write_rows(pictures / "dev.csv", ROWS + bad)
    with pytest.raises(DataError) as caught:
        load(train=train, dev=dev)
    assert all(f"{path}: 1 unusable row(s)" in str(caught.value) for path in (train, dev))


def test_dropping_does_not_rename_the_other_captions(pictures: Path) -> None:
    rows = [{"image": "p0.png", "caption": text} for text in ("a", "", "c")]
    path = write_rows(pictures / "captions.jsonl", rows)
    split = load(train=path, dev=path, bad_rows="drop").split("train")
    assert [caption.id for caption in split.captions] == ["p0.png#0", "p0.png#2"]


def test_wrong_numbers_of_fields(pictures: Path) -> None:
    path = write_rows(pictures / "captions.csv", ROWS)
    path.write_text(path.read_text() + "p0.png,a,b\np1.png\n")
    with pytest.raises(DataError, match="not 2 fields: line 42, line 43"):
        load(train=path)
    assert load(train=path, bad_rows="drop").dropped == {"not 2 fields": 2}


def test_groups_that_contradict_each_other(pictures: Path) -> None:
    rows = [row | {"g": row["image"]} for row in ROWS]
    rows[1]["g"] = "other"
    with pytest.raises(DataError, match=r"several groups: 'p0.png' \(line 3\)"):
        load(train=write_rows(pictures / "captions.csv", rows), group_column="g")


def test_media_without_captions_are_reported(
    pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_rows(pictures / "captions.csv", ROWS[:20])
    touch(pictures, "notes.txt", ".thumb.png")
    with caplog.at_level(logging.WARNING):
        data = load(train=path)
    assert data.unused == tuple(f"p{i}.png" for i in range(10, 20))
    assert "10 file(s) have no caption: p10.png, p11.png" in caplog.text
    assert "and 5 more" in caplog.text


@pytest.mark.parametrize(
    ("content", "values", "message"),
    [
        (b"a,b\nx,y\n", {}, "has no column called media image .*it has a, b.*`media_column`"),
        (b"image,b\nx,y\n", {}, "has no column called caption .*it has image, b"),
        (b"image,caption\nx,y\n", {"caption_column": "text"}, "has no column 'text'; it has image"),
        (b"image,caption\nx,y\n", {"group_column": "g"}, "has no column 'g'.*`group_column`"),
        (b"image,caption\np0.png,caf\xe9\n", {}, "is not UTF-8 .* at byte 24.*replace"),
        (b"", {}, "is empty"),
        (b"image,caption\n", {}, "the split 'train' is empty"),
        (b"image,caption\np0.png,a\n", {"media": Path("nowhere")}, "there is no media folder"),
    ],
)
def test_unusable_files(pictures: Path, content: bytes, values: dict, message: str) -> None:
    path = pictures / "captions.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(train=path, **values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"p0.png": "a", "p0.png": "b"}', "has the name 'p0.png' twice"),
        (b'{"p0.png": 3}', "is no captions file"),
        (b"[1, 2]", "is no captions file"),
        (b"[]", "is empty"),
        (b"3", "is no captions file"),
        (b'{"p0.png": "caf\xe9"}', "is not UTF-8"),
        (b'{"p0.png": "a"', "captions.json is not JSON: Expecting"),
        (b'{"image": "p0", "caption": "a"}\n{"image":\n', "line 2 is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": [{"filename": "a"}]}', "image 1 has no split, sentences"),
        (b'{"images": [3]}', "image 1 has no filename"),
        (
            b'{"images": [{"filename": "a", "split": "x", "sentences": []}]}',
            "unknown split 'x'; known: train, restval",
        ),
    ],
)
def test_unusable_json(pictures: Path, content: bytes, message: str) -> None:
    path = pictures / "captions.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(train=path)


def test_bad_bytes_are_marked_if_asked(pictures: Path) -> None:
    path = pictures / "captions.csv"
    path.write_bytes(b"image,caption\np0.png,caf\xe9\n")
    data = load(train=path, dev=path, encoding_errors="replace")
    assert pairs(data.split("train")) == [("p0.png", "caf\ufffd")]


def test_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        load(train=tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"neither captions\.csv nor metadata\.csv"):
        load(train=tmp_path)


def test_a_link_inside_the_folder_is_followed(pictures: Path, tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere.png")
    (pictures / "link.png").symlink_to(tmp_path / "elsewhere.png")
    path = write_rows(pictures / "captions.csv", [{"image": "link.png", "caption": "x"}])
    assert load(train=path, dev=path).split("train").items[0].path == pictures / "link.png"


def test_configs_are_checked_together() -> None:
    with pytest.raises(ConfigError) as caught:
        CaptionData.build({"train": "x", "fractions": (0.5, 0.1, 0.1), "folds": 0})
    assert "sum to 1" in str(caught.value)
    assert "folds must be at least 1" in str(caught.value)


def test_published_protocols_are_defaults() -> None:
    made = {
        task: CaptionData(task=task, train=Path("x"))
        for task in ("retrieval", "flickr30k", "coco", "msrvtt", "msvd")
    }
    assert {task: data.folds for task, data in made.items() if data.folds > 1} == {"coco": 5}
    over = {task for task, data in made.items() if data.m2t_over == "items"}
    assert over == {"msvd"}
    assert CaptionData(task="coco", train=Path("x"), folds=1).folds == 1


# --- docu


# --- documentation


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs/retrieval.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    rows = [row | {"concept": row["image"]} for row in ROWS]
    folder = touch(tmp_path / "emoji", *(f"p{i}.png" for i in range(20)))
    write_rows(folder / "captions.csv", rows)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        if "load_dataset(" in block or "rank_all(" in block:
            exec(compile(block, page.name, "exec"), names)  # the page's own code
    assert len(names["data"].splits) == 3
    assert names["ranks"].text_to_media.tolist() == [0, 0, 1]
    assert names["ranks"].media_to_text.tolist() == [0, 0]
