"""Retrieval data: every layout, the checks with their messages, the splits; nothing is lost."""

import csv
import json
import logging
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.config import ConfigError
from pipeline.inputs import ImageInput, TextInput, VideoInput
from pipeline.reading.retrieval.gather import Gathered
from pipeline.reading.retrieval.split import assign
from pipeline.reading.tables import DataError
from pipeline.retrieval.data import (
    MediaItem,
    RetrievalData,
    RetrievalDataset,
    RetrievalSplit,
    load_retrieval,
)


def load(**values: Any) -> RetrievalDataset:
    return load_retrieval(RetrievalData.build(values))


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def pairs(split: RetrievalSplit) -> list[tuple[str, str]]:
    """Return (item, text) of every caption."""
    return [
        (split.items[owner].id, caption.text)
        for owner, caption in zip(split.item_of, split.captions, strict=True)
    ]


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
    assert {name: len(split.items) for name, split in data.splits.items()} == {
        "train": 14, "dev": 2, "test": 4,
    }  # fmt: skip
    for name, split in data.splits.items():
        assert [item.path for item in split.items] == [
            item.path for item in reference.split(name).items
        ]
        assert [c.text for c in split.captions] == [c.text for c in reference.split(name).captions]
        assert split.item_of.tolist() == np.repeat(np.arange(len(split.items)), 2).tolist()
    assert (data.dropped, data.uncaptioned) == ({}, ())


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
    sizes = {name: len(split.items) for name, split in load(train=pictures).splits.items()}
    assert sizes == {"train": 10, "dev": 5, "test": 5}
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
    texts = data.inputs("text")
    assert len(dict(texts)) == len(texts) == 40
    assert {value.text for _, value in texts} == {row["caption"] for row in ROWS}
    assert all(isinstance(value, TextInput) for _, value in texts)
    first = data.split("train").items[0]
    assert texts[0][0] == f"train/{first.id}#0"
    for tower, kind in (("image", ImageInput), ("video", VideoInput)):
        media = data.inputs(tower)
        assert len(dict(media)) == len({value.path for _, value in media}) == 20
        assert media[0] == (f"train/{first.id}", kind(first.path))
    with pytest.raises(ValueError, match="unknown tower 'sound'"):
        data.inputs("sound")
    with pytest.raises(DataError, match=r"no split 'val'; there are: train \(14\)"):
        data.split("val")


def test_without_leaves_items_and_their_captions_out(pictures: Path) -> None:
    path = write_rows(pictures / "captions.csv", ROWS)
    split = load(train=path, dev=path).split("train")
    less = split.without({"p0.png", "p7.png"})
    assert pairs(less) == [p for p in pairs(split) if p[0] not in ("p0.png", "p7.png")]
    assert less.item_of.dtype == np.int64
    assert pairs(split.without(())) == pairs(split)


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
    assert {name: len(split.items) for name, split in data.splits.items()} == {
        "train": 204, "dev": 36, "test": 60,
    }  # fmt: skip
    again, other = (load(train=path, group_column="concept", split_seed=s) for s in (0, 1))
    assert pairs(again.split("test")) == pairs(data.split("test")) != pairs(other.split("test"))


def test_a_missing_dev_is_split_off_and_a_given_test_kept(pictures: Path) -> None:
    train = write_rows(pictures / "a.csv", ROWS[:30])
    test = write_rows(pictures / "b.csv", ROWS[30:])
    data = load(train=train, test=test)
    sizes = {name: len(split.items) for name, split in data.splits.items()}
    assert sizes == {"train": 13, "dev": 2, "test": 5}


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
    assert data.uncaptioned == tuple(f"p{i}.png" for i in range(10, 20))
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
        RetrievalData.build({"train": "x", "fractions": (0.5, 0.1, 0.1), "folds": 0})
    assert "sum to 1" in str(caught.value)
    assert "folds must be at least 1" in str(caught.value)


def test_published_protocols_are_defaults() -> None:
    made = {
        task: RetrievalData(task=task, train=Path("x"))
        for task in ("retrieval", "flickr30k", "coco", "msrvtt", "msvd")
    }
    assert {task: data.folds for task, data in made.items() if data.folds > 1} == {"coco": 5}
    over = {task for task, data in made.items() if data.m2t_over == "items"}
    assert over == {"msvd"}
    assert RetrievalData(task="coco", train=Path("x"), folds=1).folds == 1


# --- Flickr30K and COCO


def karpathy(*records: tuple[str, str, str, int]) -> dict[str, Any]:
    """Return a document of (filepath, filename, split, number of sentences)."""
    images = []
    for number, (folder, name, split, count) in enumerate(records):
        sentences = [
            {"raw": f"{name} says {k}.", "tokens": [name, "says", str(k)], "sentid": 9 * number + k}
            for k in range(count)
        ]
        image = {"filename": name, "imgid": number, "split": split, "sentences": sentences}
        images.append(image | ({"filepath": folder, "cocoid": number} if folder else {}))
    return {"images": images, "dataset": "x"}


@pytest.mark.parametrize("media", ["given", "beside", "below"])
def test_karpathy_coco(tmp_path: Path, media: str) -> None:
    records = [
        ("train2014", "a.jpg", "train", 5), ("val2014", "b.jpg", "restval", 5),
        ("val2014", "c.jpg", "val", 6), ("val2014", "d.jpg", "test", 5),
        ("val2014", "e.jpg", "test", 5),
    ]  # fmt: skip
    root = {"given": tmp_path / "i", "beside": tmp_path, "below": tmp_path / "i"}[media]
    touch(root, *(f"{folder}/{name}" for folder, name, *_ in records))
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(karpathy(*records)))
    values = {"media": root} if media == "given" else {}
    data = load(task="coco", train=path, **values)
    ids = {name: [item.id for item in split.items] for name, split in data.splits.items()}
    assert ids == {
        "train": ["train2014/a.jpg", "val2014/b.jpg"],
        "dev": ["val2014/c.jpg"],
        "test": ["val2014/d.jpg", "val2014/e.jpg"],
    }
    assert data.split("test").item_of.tolist() == [0] * 5 + [1] * 5
    assert data.split("dev").captions[5].text == "c.jpg says 5."
    assert data.split("train").items[1].path == root / "val2014/b.jpg"


def test_karpathy_flickr(tmp_path: Path) -> None:
    document = karpathy(
        ("", "a.jpg", "train", 5), ("", "b.jpg", "val", 5), ("", "a.jpg", "test", 5)
    )
    document["images"][1]["sentences"][0].pop("raw")
    path = touch(tmp_path, "a.jpg", "b.jpg") / "dataset_flickr30k.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"duplicate id: 'a.jpg' \(image 3\)"):
        load(task="flickr30k", train=path)
    document["images"].pop()
    path.write_text(json.dumps(document))
    data = load(task="flickr30k", train=path)
    assert data.split("dev").captions[0].text == "b.jpg says 0"  # its tokens
    document["images"][0]["sentences"] = []
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"the caption is missing: 'a.jpg' \(image 1\)"):
        load(train=path)


def precomp(tmp_path: Path, *, per_image: bool, nested: bool = True) -> Path:
    """Write 4 images of 5 captions in each split; `testall` has 2 more."""
    folder = tmp_path / "precomp" if nested else tmp_path
    folder.mkdir(exist_ok=True)
    mapping = {str(100 + i): f"val2014/x{i}.jpg" for i in range(14)}
    touch(tmp_path / "images", *mapping.values())
    (tmp_path / "id_mapping.json").write_text(json.dumps(mapping))
    for split, numbers in {
        "train": range(4), "dev": range(4, 8), "test": range(8, 12), "testall": range(8, 14),
    }.items():  # fmt: skip
        times = 1 if per_image else 5
        ids = [100 + i for i in numbers for _ in range(times)]
        (folder / f"{split}_ids.txt").write_text("".join(f"{i}\n" for i in ids))
        captions = "".join(f"x{i} has {k} \n" for i in numbers for k in range(5))
        (folder / f"{split}_caps.txt").write_text(captions)
    return folder


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_precomp(tmp_path: Path, per_image: bool, nested: bool) -> None:
    folder = precomp(tmp_path, per_image=per_image, nested=nested)
    for train, media in ((folder, tmp_path / "images"), (tmp_path, None), (folder, None)):
        data = load(task="coco", train=train, media=media)
        sizes = {name: len(split.items) for name, split in data.splits.items()}
        assert sizes == {"train": 4, "dev": 4, "test": 6}
        assert pairs(data.split("test"))[:6] == [
            *(("108", f"x8 has {k}") for k in range(5)), ("109", "x9 has 0"),
        ]  # fmt: skip
        assert data.split("train").items[3].path == tmp_path / "images/val2014/x3.jpg"


def test_precomp_without_testall_tests_on_test(tmp_path: Path) -> None:
    folder = precomp(tmp_path, per_image=True)
    (folder / "testall_caps.txt").unlink()
    assert len(load(task="flickr30k", train=folder).split("test").items) == 4


def test_precomp_problems(tmp_path: Path) -> None:
    folder = precomp(tmp_path, per_image=True)
    ids = folder / "train_ids.txt"
    ids.write_text("100\n101\n102\n")
    with pytest.raises(DataError, match=r"has 20 captions and .*train_ids.txt 3 identifiers"):
        load(train=folder)
    (folder / "dev_caps.txt").write_text("")
    ids.write_text("100\n100\n102\n999\n")
    with pytest.raises(DataError, match=r"dev_caps.txt has 0 captions and .*ids.txt 4"):
        load(train=folder)
    (folder / "dev_caps.txt").write_text("c\n" * 19 + "\xa0\n")
    with pytest.raises(DataError) as caught:
        load(train=folder)
    message = str(caught.value)
    assert "duplicate id: '100' (line 2 of train_ids.txt)" in message
    assert "the id is not in id_mapping.json: '999' (line 4)" in message
    assert "the caption is empty: '107' (line 20)" in message
    (tmp_path / "id_mapping.json").write_text('{"100": "../../etc/passwd"}')
    with pytest.raises(DataError, match="leaves the media folder: '100'"):
        load(train=folder)
    (tmp_path / "id_mapping.json").write_text("[]")
    with pytest.raises(DataError, match="must be a JSON mapping"):
        load(train=folder)
    (tmp_path / "id_mapping.json").unlink()
    with pytest.raises(DataError, match=r"there is no id_mapping\.json"):
        load(train=folder)
    touch(tmp_path, "id_mapping.json")
    (folder / "train_ids.txt").unlink()
    (tmp_path / "id_mapping.json").write_text("{}")
    with pytest.raises(DataError, match=r"there is no file .*train_ids\.txt"):
        load(train=folder)


# --- MSR-VTT


@pytest.fixture
def msrvtt(tmp_path: Path) -> Path:
    """10 clips to train on with 3 sentences each, 4 to test on with one."""
    touch(tmp_path / "videos", *(f"video{i}.mp4" for i in range(14)))
    (tmp_path / "MSRVTT_train.9k.csv").write_text(
        "video_id\n" + "".join(f"video{i}\n" for i in range(10))
    )
    sentences = [
        {"video_id": f"video{i}", "caption": f"clip {i} sentence {k}", "sen_id": 3 * i + k}
        for k in range(3)
        for i in range(14)
    ]
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"sentences": sentences}))
    with (tmp_path / "MSRVTT_JSFUSION_test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "vid_key", "video_id", "sentence"])
        writer.writerows([f"ret{i}", f"msr{i}", f"video{i}", f"test, {i}"] for i in range(10, 14))
    return tmp_path


def test_msrvtt(msrvtt: Path) -> None:
    data = load(task="msrvtt", train=msrvtt, media=msrvtt / "videos")
    sizes = {name: (len(s.items), len(s.captions)) for name, s in data.splits.items()}
    assert sizes == {"train": (9, 27), "dev": (1, 3), "test": (4, 4)}
    assert pairs(data.split("test"))[0] == ("video10", "test, 10")
    assert pairs(data.split("train"))[:2] == [
        ("video0", "clip 0 sentence 0"), ("video0", "clip 0 sentence 1"),
    ]  # fmt: skip
    assert data.inputs("video")[0] == (
        "train/video0", VideoInput(msrvtt / "videos/video0.mp4")
    )  # fmt: skip
    official = load(
        task="msrvtt", train=msrvtt / "MSRVTT_train.9k.csv", dev=msrvtt / "MSRVTT_JSFUSION_test.csv"
    )
    assert len(official.split("train").items) == 10
    assert pairs(official.split("dev")) == pairs(data.split("test"))


def test_the_dev_part_of_msrvtt_has_497_clips() -> None:
    clips = [Gathered(MediaItem(f"video{i}", Path()), f"video{i}") for i in range(9000)]
    config = RetrievalData(task="msrvtt", train=Path("x"))
    splits = assign({"train": clips, "test": clips[:1]}, config)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 8503, "dev": 497, "test": 1,
    }  # fmt: skip
    without_test = assign({"train": clips}, config)
    assert [len(rows) for rows in without_test.values()] == [6703, 497, 1800]


def test_msrvtt_problems(msrvtt: Path) -> None:
    train, test = msrvtt / "MSRVTT_train.9k.csv", msrvtt / "MSRVTT_JSFUSION_test.csv"
    train.write_text(train.read_text() + "video3\nvideo77\n")
    test.write_text(test.read_text() + "ret10,m,video11,again\n")
    (msrvtt / "videos/video5.mp4").unlink()
    with pytest.raises(DataError) as caught:
        load(task="msrvtt", train=msrvtt)
    message = str(caught.value)
    assert "duplicate id: 'video3' (line 12)" in message
    assert "no sentence in MSRVTT_data.json: 'video77' (line 13)" in message
    assert "there is no such file" in message
    assert "'video5' (line 7, sentence 1)" in message
    assert "duplicate key: 'ret10' (line 6)" in message
    data = load(task="msrvtt", train=msrvtt, bad_rows="drop")
    assert sum(data.dropped.values()) == 4
    train.write_text("id\nvideo1\n")
    with pytest.raises(DataError, match="no column 'video_id'; it has id"):
        load(task="msrvtt", train=msrvtt)
    train.write_text("video_id\nvideo1\n")
    for content, expected in (("[]", "no list"), ('{"sentences": [{"a": 1}]}', "sentence 1 needs")):
        (msrvtt / "MSRVTT_data.json").write_text(content)
        with pytest.raises(DataError, match=expected):
            load(task="msrvtt", train=msrvtt)
    (msrvtt / "MSRVTT_data.json").unlink()
    with pytest.raises(DataError, match=r"there is no file .*MSRVTT_data\.json"):
        load(task="msrvtt", train=msrvtt)


# --- MSVD


@pytest.fixture
def msvd(tmp_path: Path) -> Path:
    names = [f"vid_{i}_{i}_9" for i in range(6)]
    touch(tmp_path / "YouTubeClips", *(f"{name}.avi" for name in names))
    captions = {name: [["a", "man", str(i)], ["he", "sings"]] for i, name in enumerate(names)}
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(captions))
    for split, part in (("train", names[:3]), ("val", names[3:4]), ("test", names[4:])):
        (tmp_path / f"{split}_list.txt").write_text("".join(f"{name}\n" for name in part))
    return tmp_path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_msvd(msvd: Path, protocol: int) -> None:
    path = msvd / "raw-captions.pkl"
    captions = pickle.loads(path.read_bytes())  # written above
    path.write_bytes(pickle.dumps(captions, protocol=protocol))
    data = load(task="msvd", train=msvd)
    assert {name: len(split.captions) for name, split in data.splits.items()} == {
        "train": 6, "dev": 2, "test": 4,
    }  # fmt: skip
    assert pairs(data.split("test"))[:2] == [("vid_4_4_9", "a man 4"), ("vid_4_4_9", "he sings")]
    assert data.config.m2t_over == "items"


def test_a_pickle_of_python_2_is_read(msvd: Path) -> None:
    """Protocol 2 with byte strings (opcode U), as `cPickle` wrote it."""
    name, word = b"vid_0_0_9", "caf\u00e9".encode()
    data = b"\x80\x02}U" + bytes([len(name)]) + name + b"]]U" + bytes([len(word)]) + word + b"aas."
    (msvd / "raw-captions.pkl").write_bytes(data)
    (msvd / "train_list.txt").write_text("vid_0_0_9\n")
    (msvd / "val_list.txt").write_text("vid_0_0_9\n")
    (msvd / "test_list.txt").unlink()
    assert pairs(load(task="msvd", train=msvd).split("train")) == [("vid_0_0_9", "caf\u00e9")]


class Evil:
    """A pickle of it creates a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_does_nothing(msvd: Path) -> None:
    target = msvd / "harm"
    path = msvd / "raw-captions.pkl"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"vid_0_0_9": Evil(target)}, protocol=protocol))
        with pytest.raises(DataError, match=r"is refused: it asks for \w+\.mkdir"):
            load(task="msvd", train=msvd)
        assert not target.exists()
    pickle.loads(path.read_bytes())  # the plain unpickler would have run it
    assert target.is_dir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is refused"),
        (b"no pickle", "is refused"),
        (pickle.dumps({"a": "b"})[:-4], "is refused"),
        (pickle.dumps({1, 2}), "must hold a dict of clip -> captions, not set"),
        (pickle.dumps(np.arange(2)), "is refused: it asks for numpy"),
        (b"\x80\x02U\x03xPid0\n.", "is refused"),
        (b"Pid0\n.", "is refused: it asks for the persistent object"),
        (b"\x80\x02U\x01\xe9.", "not UTF-8"),
    ],
)
def test_unusable_pickles(msvd: Path, content: bytes, message: str) -> None:
    (msvd / "raw-captions.pkl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(task="msvd", train=msvd)


def test_msvd_problems(msvd: Path) -> None:
    path = msvd / "train_list.txt"
    path.write_text(path.read_text() + "\nvid_1_1_9\nunknown\n")
    (msvd / "YouTubeClips/vid_2_2_9.avi").unlink()
    with pytest.raises(DataError) as caught:
        load(task="msvd", train=msvd)
    message = str(caught.value)
    assert "duplicate id: 'vid_1_1_9' (line 5)" in message
    assert "no caption in raw-captions.pkl: 'unknown' (line 6)" in message
    assert "'vid_2_2_9' (line 3)" in message
    assert len(load(task="msvd", train=msvd, bad_rows="drop").split("train").items) == 2


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
        if "load_retrieval(" in block or "rank_all(" in block:
            exec(compile(block, page.name, "exec"), names)  # the page's own code
    assert len(names["data"].splits) == 3
    assert names["ranks"].text_to_media.tolist() == [0, 0, 1]
    assert names["ranks"].media_to_text.tolist() == [0, 0]
