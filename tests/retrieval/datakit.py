"""What the tests of retrieval data share: loading by plain values, empty media, flat pairs."""

from pathlib import Path
from typing import Any

from pipeline.retrieval.data import CaptionData, RetrievalDataset, RetrievalSplit, load_retrieval


def load(**values: Any) -> RetrievalDataset:
    return load_retrieval(CaptionData.build(values))


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
