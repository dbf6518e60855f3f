"""Index: embed a folder's images or videos with an exported model, once.

Cost: one forward pass a new content (a frame, for videos); files whose size and time, or content,
are those of the index in place are taken over from it, so the same command finishes an interrupted
build and follows a folder that changes. Memory: the vectors, 4 E bytes a file, and two batches.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from pipeline.config import Config
from pipeline.console import duration
from pipeline.fused.loading import load_exported
from pipeline.gallery.embed import Vector, embed_files, media_files, model_digest
from pipeline.gallery.store import (
    INFO,
    NOUNS,
    Entry,
    GalleryError,
    Index,
    Kind,
    listed,
    shown,
)
from pipeline.systems.inference import choose_device

SAVE_SECONDS = 60.0
"""Time between two saves of an unfinished index."""


class IndexConfig(Config):
    """Which exported model embeds which folder, and where the index goes."""

    model: Path
    """Folder of an exported model."""
    media: Path
    """Folder of the images or videos, searched with its sub-folders."""
    out: Path
    """Folder of the index; one that is there is brought up to date."""
    kind: Literal["auto", "image", "video"] = "auto"
    """What to index; auto takes what the model was trained on."""
    bad_media: Literal["error", "skip"] = "error"
    """What to do with files that cannot be read: name them and fail, or leave them out."""
    batch_size: int = Field(default=32, ge=1)
    """Images or frames of a forward pass."""
    threads: int = Field(default=0, ge=0)
    """Threads that decode; 0 takes one a core, at most 8."""
    device: str = "auto"
    """Torch device; auto takes cuda, then mps, then cpu."""
    trust_code: bool = False
    """Run the model code in the folder where it is not this version's own."""


class IndexProgress(NamedTuple):
    """How far a build is: files done, of all, and files a second."""

    done: int
    total: int
    rate: float

    def describe(self) -> str:
        """Return one line: share done, files a second, time left."""
        left = duration((self.total - self.done) / self.rate) if self.rate else "?"
        return f"{self.done / max(1, self.total):4.0%}  {self.rate:,.1f} files/s  {left} left"


ProgressCallback = Callable[[IndexProgress], Any]


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """What a build did.

    Attributes:
        path: the index.
        kind: what was indexed.
        media: the media folder.
        files: indexed files; `embedded` of them were read by the model now.
        removed: files of the earlier index that are gone.
        skipped: path -> reason, of the files that could not be read.
        width: E, of the vectors.
        seconds: the whole took.
        note: why an earlier index could not be used; empty if it was, or if there was none.
    """

    path: Path
    kind: Kind
    media: Path
    files: int
    embedded: int
    removed: int
    skipped: dict[str, str] = field(default_factory=dict)
    width: int
    seconds: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"path": str(self.path), "media": str(self.media)}

    def render(self) -> str:
        """Return the report as lines of text."""
        lines = [
            f"{self.path}: {self.files:,} {NOUNS[self.kind]} of {self.media}, "
            f"{self.width} numbers each; {self.embedded:,} embedded now, "
            f"{self.files - self.embedded:,} unchanged, {self.removed:,} gone "
            f"({duration(self.seconds)})"
        ]
        lines += [self.note] if self.note else []
        lines += [f"skipped {shown(path)}: {why}" for path, why in self.skipped.items()]
        return "\n".join(lines)


def build_index(config: IndexConfig, progress: ProgressCallback | None = None) -> IndexReport:
    """Bring the index `config.out` up to date with the media folder.

    Args:
        config: what to do.
        progress: told how far the build is, after every batch.

    Raises:
        NotAnExport: `config.model` is no exported model to search with.
        GalleryError: the media folder or `config.out` is unusable, or files cannot be read and
            `bad_media` is "error": all of them are named, and the others' vectors are kept.
    """
    start = time.monotonic()
    old = _earlier(config.out)
    model = load_exported(config.model, "index", trust_code=config.trust_code)
    model.to(choose_device(config.device))
    kind: Kind = model.modality if config.kind == "auto" else config.kind
    paths = media_files(config.media, kind)
    digest = model_digest(config.model)
    note = _unusable(old, kind, digest)
    build = _Build(config, kind, digest, None if note else old)
    build.run(model, paths, progress)
    if build.skipped and config.bad_media == "error":
        raise GalleryError(
            f"{len(build.skipped):,} of {len(paths):,} {NOUNS[kind]} cannot be read:\n  "
            + "\n  ".join(f"{shown(path)}: {why}" for path, why in build.skipped.items())
            + "\nMend or remove them, or leave them out with bad_media=skip; the vectors of the "
            "others are kept"
        )
    index = build.save(complete=True)
    return IndexReport(
        path=config.out,
        kind=kind,
        media=config.media,
        files=len(index.entries),
        embedded=build.embedded,
        removed=len({e.path for e in old.entries} - set(paths)) if old and not note else 0,
        skipped=dict(build.skipped),
        width=index.vectors.shape[1],
        seconds=time.monotonic() - start,
        note=note,
    )


class _Build:
    """Entries and vectors of an index as they come in."""

    def __init__(self, config: IndexConfig, kind: Kind, digest: str, old: Index | None) -> None:
        self.config, self.kind, self.digest = config, kind, digest
        self.done: dict[str, tuple[Entry, Vector]] = {}
        self.known: dict[str, Vector] = {}  # content key -> vector
        self.skipped: dict[str, str] = {}
        self.embedded = 0
        for entry, vector in zip(old.entries, old.vectors, strict=True) if old else ():
            self.known[entry.key] = vector
            if entry.unchanged(config.media):
                self.done[entry.path] = entry, vector

    def run(self, model: Any, paths: list[str], progress: ProgressCallback | None) -> None:
        """Embed what is not known yet; what was embedded is saved, whatever happens."""
        wanted = set(paths)
        self.done = {path: found for path, found in self.done.items() if path in wanted}
        missing = [path for path in paths if path not in self.done]
        start = saved = time.monotonic()
        config = self.config
        batches = embed_files(
            model,
            config.media,
            missing,
            self.kind,
            known=self.known,
            batch_size=config.batch_size,
            threads=config.threads or min(8, os.cpu_count() or 1),
        )
        read = 0
        try:
            for batch in batches:
                for path, entry, found in batch:
                    self._take(path, entry, found)
                read += len(batch)
                now = time.monotonic()
                if progress:
                    rate = read / max(now - start, 1e-9)
                    progress(IndexProgress(len(paths) - len(missing) + read, len(paths), rate))
                if now - saved > SAVE_SECONDS:
                    self.save(complete=False)
                    saved = now
        finally:
            if len(self.done) < len(paths) and self.done:
                self.save(complete=False)

    def _take(self, path: str, entry: Entry | None, found: Vector | str) -> None:
        if entry is None:
            self.skipped[path] = str(found)
            return
        self.embedded += entry.key not in self.known
        self.done[path] = entry, np.asarray(found, np.float32)

    def save(self, *, complete: bool) -> Index:
        """Write what there is."""
        if not self.done:
            raise GalleryError(
                f"none of the files of {self.config.media} can be read: "
                f"{listed(f'{path} ({why})' for path, why in self.skipped.items())}"
            )
        chosen = [self.done[path] for path in sorted(self.done)]
        index = Index(
            kind=self.kind,
            media=self.config.media.resolve(),
            model=self.config.model.resolve(),
            digest=self.digest,
            entries=tuple(entry for entry, _ in chosen),
            vectors=np.stack([vector for _, vector in chosen]),
            skipped=self.skipped,
            complete=complete,
        )
        index.write(self.config.out)
        return index


def _earlier(out: Path) -> Index | None:
    """Return the index in `out`, None if there is nothing.

    Raises:
        GalleryError: something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / INFO).is_file():
        raise GalleryError(f"{out} exists and is no index: choose another folder")
    return Index.read(out)


def _unusable(old: Index | None, kind: Kind, digest: str) -> str:
    if old is None or (old.digest == digest and old.kind == kind):
        return ""
    what = "its model is not this one" if old.digest != digest else f"it holds {NOUNS[old.kind]}"
    return f"the earlier index was not used: {what}"
