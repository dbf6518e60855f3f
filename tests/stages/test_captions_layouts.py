"""Captioned data: the published layouts of Flickr30K, COCO, MSR-VTT and MSVD."""

import csv
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captionkit import load, pairs, sizes, touch

from pipeline.inputs import VideoInput
from pipeline.reading.captioned.gather import Gathered, MediaItem
from pipeline.reading.captioned.split import assign
from pipeline.reading.config import CaptionData
from pipeline.reading.tables import DataError

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
        assert sizes(data) == {"train": 4, "dev": 4, "test": 6}
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
    found = {name: (len(s.items), len(s.captions)) for name, s in data.splits.items()}
    assert found == {"train": (9, 27), "dev": (1, 3), "test": (4, 4)}
    assert pairs(data.split("test"))[0] == ("video10", "test, 10")
    assert pairs(data.split("train"))[:2] == [
        ("video0", "clip 0 sentence 0"), ("video0", "clip 0 sentence 1"),
    ]  # fmt: skip
    assert data.split("train").rows("media", "video")[0] == (
        "train/video0", VideoInput(msrvtt / "videos/video0.mp4")
    )  # fmt: skip
    official = load(
        task="msrvtt", train=msrvtt / "MSRVTT_train.9k.csv", dev=msrvtt / "MSRVTT_JSFUSION_test.csv"
    )
    assert len(official.split("train").items) == 10
    assert pairs(official.split("dev")) == pairs(data.split("test"))


def test_the_dev_part_of_msrvtt_has_497_clips() -> None:
    clips = [Gathered(MediaItem(f"video{i}", Path()), f"video{i}") for i in range(9000)]
    config = CaptionData(task="msrvtt", train=Path("x"))
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
        (pickle.dumps({1, 2}), "must hold a dict of video -> captions, not set"),
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
