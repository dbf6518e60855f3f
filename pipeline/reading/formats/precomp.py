"""The folder of VSE++ and its heirs: `{split}_caps.txt`, `{split}_ids.txt`, `id_mapping.json`.

One caption a line; as many identifiers (one a caption), or one for every k captions. The mapping
{"id": "path within media"} lies in the folder or in the one above. COCO's `testall` is the test
split; `test`, its first fold, is read only where there is no `testall`.
"""

from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.reading.config import CaptionData
from pipeline.reading.files import read_json, read_lines
from pipeline.reading.formats.rows import CaptionRow, Reading, Readings

SPLITS = {"train": ("train",), "dev": ("dev", "val"), "test": ("testall", "test")}
MAPPING = "id_mapping.json"


def find_precomp(folder: Path) -> Path | None:
    """Return `folder`, or `precomp` in it, whichever holds `train_caps.txt`; else None."""
    candidates = (folder, folder / "precomp")
    return next((each for each in candidates if (each / "train_caps.txt").is_file()), None)


def media_root(folder: Path) -> Path:
    """Return the folder that the mapping lies in; the images are looked for below it.

    Raises:
        DataError: there is no mapping.
    """
    for each in (folder, folder.parent):
        if (each / MAPPING).is_file():
            return each
    raise DataError(
        f"there is no {MAPPING} in {folder} or the folder above it: it maps each identifier to a "
        "image's path within `media`"
    )


def read_precomp(folder: Path, config: CaptionData) -> Readings:
    """Return the rows by split.

    Raises:
        DataError: a file is missing or unreadable, or captions and identifiers do not match.
    """
    mapping = read_json(media_root(folder) / MAPPING, config.encoding_errors)
    if not isinstance(mapping, dict):
        raise DataError(f"{media_root(folder) / MAPPING} must be a JSON mapping of id -> path")
    readings: Readings = {}
    for split, names in SPLITS.items():
        files = [folder / f"{name}_caps.txt" for name in names]
        if path := next((file for file in files if file.is_file()), None):
            readings[split] = _split(path, mapping, config)
    return readings


def _split(path: Path, mapping: dict[str, Any], config: CaptionData) -> Reading:
    captions = read_lines(path, config.encoding_errors)
    ids_path = path.with_name(path.name.replace("_caps.txt", "_ids.txt"))
    ids = [line.strip() for line in read_lines(ids_path, config.encoding_errors)]
    if not ids or not captions or len(captions) % len(ids):
        raise DataError(
            f"{path} has {len(captions)} captions and {ids_path} {len(ids)} identifiers; it takes "
            "one a caption, or one for every k captions"
        )
    each = len(captions) // len(ids)
    reading = Reading(str(path))
    seen: set[str] = set()
    for number, name in enumerate(ids):
        if each > 1 and name in seen:
            reading.problems.add("duplicate id", f"{name!r} (line {number + 1} of {ids_path.name})")
            continue
        seen.add(name)
        if name not in mapping:
            reading.problems.add(f"the id is not in {MAPPING}", f"{name!r} (line {number + 1})")
            continue
        lines = range(number * each, (number + 1) * each)
        reading.rows += [
            CaptionRow(name, str(mapping[name]), captions[line].strip(), f"line {line + 1}")
            for line in lines
        ]
    return reading
