"""Karpathy's JSON of Flickr30K and COCO: {"images": [{filename, split, sentences: [{raw}]}]}.

COCO's split "restval" is training data. An image is called by its path, `filepath/filename`.
"""

from typing import Any

from pipeline.errors import DataError
from pipeline.reading.formats.rows import CaptionRow, Reading, Readings

SPLITS = {"train": "train", "restval": "train", "val": "dev", "dev": "dev", "test": "test"}


def is_karpathy(document: Any) -> bool:
    """Whether `document` is of this kind."""
    return isinstance(document, dict) and isinstance(document.get("images"), list)


def read_karpathy(document: dict[str, Any], source: str) -> Readings:
    """Return the rows by split.

    Raises:
        DataError: records lack a field or name an unknown split.
    """
    readings = {split: Reading(f"{source}[{split}]") for split in dict.fromkeys(SPLITS.values())}
    seen: set[str] = set()
    for number, image in enumerate(document["images"], start=1):
        place = f"image {number}"
        split, name, sentences = _fields(image, f"{source}, {place}")
        reading = readings[split]
        if name in seen:
            reading.problems.add("duplicate id", f"{name!r} ({place})")
            continue
        seen.add(name)
        texts = [_text(sentence) for sentence in sentences] or [None]
        reading.rows += [CaptionRow(name, name, text, place) for text in texts]
    return {split: each for split, each in readings.items() if each.rows or each.problems.places}


def _fields(image: Any, where: str) -> tuple[str, str, list[Any]]:
    missing = [
        name
        for name in ("filename", "split", "sentences")
        if not isinstance(image, dict) or name not in image
    ]
    if missing:
        raise DataError(
            f"{where} has no {', '.join(missing)}; each needs filename, split and sentences "
            "[{raw or tokens}] (and filepath, where it has one)"
        )
    if image["split"] not in SPLITS:
        raise DataError(f"{where}: unknown split {image['split']!r}; known: {', '.join(SPLITS)}")
    folder = str(image.get("filepath") or "")
    name = str(image["filename"])
    return SPLITS[image["split"]], f"{folder}/{name}" if folder else name, list(image["sentences"])


def _text(sentence: Any) -> Any:
    """Return the sentence as written, else its tokens with spaces between."""
    if not isinstance(sentence, dict):
        return sentence
    if sentence.get("raw") is not None:
        return sentence["raw"]
    tokens = sentence.get("tokens")
    return " ".join(map(str, tokens)) if tokens else None
