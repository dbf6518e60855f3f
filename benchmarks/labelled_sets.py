"""Four real data sets with labels, as the files and options that the pipeline takes.

Entities of WNUT 2017 (`wnut17/`), intents of CLINC150 (`clinc/data_small.json`) and cells of BCCD
(`bccd/BCCD/`) are read from a folder that is given; the emoji come through npm, as the demo's do.
Costs 90 MB of download for each backbone, and 1,400 small PNG files for the cells.
"""

import json
import random
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.demo.assets import empty_folder, fetch, minilm
from pipeline.demo.dinov2 import dinov2
from pipeline.demo.emoji import CAPTIONS, NAMES, emoji_pictures

ASSETS = Path(".demo")
FRACTIONS = (0.6, 0.1, 0.3)
IMAGES = {"image_size": "112"}
TEXT_CANDIDATES: tuple[dict[str, Any], ...] = (
    {},
    {"noise": 0.6, "dropout": 0.5},
    {"reduction": 1.0, "lr": 3e-4},
    {"input_norm": "standard", "dropout": 0.4, "ema": 0.99},
    {"token_drop": 0.1, "dropout": 0.4, "epochs": 10},
)
IMAGE_CANDIDATES: tuple[dict[str, Any], ...] = (
    {"epochs": 10, "dropout": 0.4},
    {"noise": 1.0, "dropout": 0.5, "epochs": 15, "ema": 0.99},
    {"noise": 0.5, "patch_drop": 0.3, "dropout": 0.5, "epochs": 15, "ema": 0.99},
    {"side_width": 96, "noise": 0.5, "dropout": 0.5, "epochs": 15, "pooling": "mean"},
)


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """One data set and what is tried on it.

    Attributes:
        data: options of its data.
        backbone: folder of the frozen model.
        extraction: other options of its extraction.
        metrics: what is reported; the first one chooses on dev.
        candidates: options of the trainings among which dev chooses.
    """

    data: Mapping[str, Any]
    backbone: Path
    metrics: tuple[str, ...]
    candidates: tuple[Mapping[str, Any], ...]
    extraction: Mapping[str, Any]


def wnut17(given: Path, work: Path) -> LabelledSet:
    """Return the entities of WNUT 2017: tweets and other posts, names that training never saw."""
    files = {
        "train": "wnut17train.conll",
        "dev": "emerging.dev.conll",
        "test": "emerging.test.annotated",
    }
    return LabelledSet(
        data={"task": "tagging", **{name: given / "wnut17" / file for name, file in files.items()}},
        backbone=minilm(ASSETS),
        metrics=("entity_f1",),
        candidates=TEXT_CANDIDATES,
        extraction={},
    )


def clinc(given: Path, work: Path) -> LabelledSet:
    """Return the 150 intents of CLINC150's small set, without what is out of scope."""
    found = json.loads((given / "clinc" / "data_small.json").read_text(encoding="utf-8"))
    folder = empty_folder(work / "clinc")
    files = {}
    for split, name in {"train": "train", "dev": "val", "test": "test"}.items():
        rows = ({"text": text, "label": intent} for text, intent in found[name])
        files[split] = write_lines(folder / f"{split}.jsonl", rows)
    return LabelledSet(
        data={"task": "classification", **files},
        backbone=minilm(ASSETS),
        metrics=("accuracy",),
        candidates=TEXT_CANDIDATES,
        extraction={},
    )


def emoji(given: Path, work: Path) -> LabelledSet:
    """Return the emoji with their groups, a concept in one split."""
    return LabelledSet(
        data=grouped(emoji_groups(emoji_pictures(ASSETS)), "concept"),
        backbone=dinov2(ASSETS),
        metrics=("accuracy", "macro_f1"),
        candidates=IMAGE_CANDIDATES,
        extraction=IMAGES,
    )


def cells(given: Path, work: Path) -> LabelledSet:
    """Return BCCD's white cells, red cells and platelets, a photograph in one split."""
    return LabelledSet(
        data=grouped(cut_cells(given / "bccd" / "BCCD", work / "cells"), "photograph"),
        backbone=dinov2(ASSETS),
        metrics=("accuracy", "macro_f1"),
        candidates=IMAGE_CANDIDATES,
        extraction=IMAGES,
    )


SETS: dict[str, Callable[[Path, Path], LabelledSet]] = {
    each.__name__: each for each in (wnut17, emoji, cells, clinc)
}
"""Makes each set, given the folder of the data and one for what is made of them."""


def grouped(table: Path, column: str) -> dict[str, Any]:
    """Return the options of a table of images, split by a column."""
    return {
        "task": "image-classification",
        "train": table,
        "group_column": column,
        "fractions": FRACTIONS,
    }


def emoji_groups(folder: Path) -> Path:
    """Write `groups.jsonl` beside the emoji of `folder`: image, group's English name, concept."""
    names, groups = {}, {}
    with tarfile.open(fetch(NAMES, ASSETS)) as package:
        for group in _json(package, "package/en/messages.json")["groups"]:
            names[group["order"]] = group["message"]
        for record in _json(package, "package/en/data.json"):
            groups[plain(record["hexcode"])] = record.get("group")
    lines = (folder / CAPTIONS).read_text(encoding="utf-8").splitlines()
    captioned = (json.loads(line) for line in lines)
    rows = (
        {
            "image": row["file"],
            "label": names[groups[plain(Path(row["file"]).stem)]],
            "concept": row["concept"],
        }
        for row in captioned
    )
    return write_lines(folder / "groups.jsonl", rows)


def plain(code: str) -> str:
    """Return an emoji's code without the mark that asks for colour."""
    return code.lower().replace("-fe0f", "")


def cut_cells(source: Path, folder: Path) -> Path:
    """Cut the boxes of BCCD's photographs into `folder`; return the table of them.

    All white cells and platelets are cut, and as many red cells, of which there are far more.
    """
    table = folder / "cells.jsonl"
    if not table.exists():
        partial = empty_folder(folder.with_name(f"{folder.name}.part"))
        found = [box for file in sorted(source.glob("Annotations/*.xml")) for box in boxes(file)]
        red = [box for box in found if box[1] == "RBC"]
        rare = [box for box in found if box[1] != "RBC"]
        chosen = rare + random.Random(0).sample(red, min(len(red), len(rare)))
        rows = []
        for number, (photograph, label, corners) in enumerate(chosen):
            name = f"{number:04}.png"
            with Image.open(source / "JPEGImages" / f"{photograph}.jpg") as image:
                image.crop(corners).save(partial / name)
            rows.append({"image": name, "label": label, "photograph": photograph})
        write_lines(partial / table.name, rows)
        empty_folder(folder).rmdir()
        partial.rename(folder)
    return table


def boxes(file: Path) -> Iterator[tuple[str, str, tuple[int, int, int, int]]]:
    """Yield the photograph, the label and the corners of each box of a VOC file, empty ones not."""
    for each in ET.parse(file).getroot().iter("object"):
        corners = [int(each.findtext(f"bndbox/{name}", "0")) for name in _CORNERS]
        left, top, right, bottom = corners
        if left < right and top < bottom:
            yield file.stem, each.findtext("name", ""), (left, top, right, bottom)


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object a line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def _json(package: tarfile.TarFile, name: str) -> Any:
    stream = package.extractfile(name)
    if stream is None:
        raise ValueError(f"{NAMES.file} does not hold {name}")
    return json.load(stream)
