"""Files to vectors: decoded by a few threads while the model embeds what they decoded before.

Memory: the pixels of two batches and of `AHEAD` files a thread. Cost: one decode and one forward
pass a file (a frame, for videos).
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.gallery.store import NOUNS, Entry, GalleryError, Kind
from pipeline.inputs import ImageInput, MediaInput, VideoInput
from pipeline.media.images import MediaError
from pipeline.media.video import media_kind

AHEAD = 4
"""Files that each thread may be ahead of the model."""
MODEL_FILES = ("*.safetensors", "*.bin", "config.json", "tokenizer*.json")
INPUTS: dict[Kind, Callable[[Path], MediaInput]] = {"image": ImageInput, "video": VideoInput}
T = TypeVar("T")
R = TypeVar("R")
Vector = NDArray[np.float32]


def model_digest(folder: Path) -> str:
    """Return a digest of an exported model's weights, options and tokenizer; 1 s a 1.5 GB."""
    digest = hashlib.blake2b(digest_size=16)
    paths = {path.name: path for pattern in MODEL_FILES for path in folder.glob(pattern)}
    for name in sorted(paths):
        digest.update(name.encode() + b"\x00")
        with paths[name].open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def media_files(folder: Path, kind: Kind) -> list[str]:
    """Return the images or videos under `folder`, relative to it, in the order of their names.

    Raises:
        GalleryError: there is no such folder, or nothing of that kind in it.
    """
    if not folder.is_dir():
        raise GalleryError(f"there is no media folder {folder}")
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        found += [p.relative_to(folder).as_posix() for p in paths if media_kind(p) == kind]
    if not found:
        raise GalleryError(f"{folder} holds no {NOUNS[kind]}")
    return sorted(found)


def describe_file(media: Path, path: str, kind: Kind) -> Entry:
    """Return the entry of a file; reads it whole, for its content key."""
    file = media / path
    found = file.stat()
    key = INPUTS[kind](file).key()
    return Entry(path=path, bytes=found.st_size, modified=found.st_mtime_ns, key=key.hex())


def embed_files(
    model: Any,
    media: Path,
    paths: Sequence[str],
    kind: Kind,
    *,
    known: dict[str, Vector],
    batch_size: int,
    threads: int,
) -> Iterator[list[tuple[str, Entry | None, Vector | str]]]:
    """Yield (path, entry, vector [E]) of every file, a batch at a time, in order.

    A file that cannot be read has no entry, and the reason in place of its vector.

    Args:
        model: an exported model.
        media: the media folder.
        paths: the files, relative to it.
        kind: what they are.
        known: content key -> vector, of contents that need no forward pass.
        batch_size: images or frames of a forward pass.
        threads: that decode.
    """

    def read(path: str) -> tuple[str, Entry | None, Tensor | Vector | str]:
        try:
            entry = describe_file(media, path, kind)
            vector = known.get(entry.key)
            found = model.prepare_media(media / path, kind) if vector is None else vector
        except (MediaError, OSError) as error:
            return path, None, str(error)
        return path, entry, found

    batch: list[tuple[str, Entry | None, Any]] = []
    frames = 0
    for item in ahead(read, paths, threads=threads, window=threads * AHEAD):
        batch.append(item)
        frames += len(item[2]) if isinstance(item[2], Tensor) else 0
        if frames >= batch_size or len(batch) >= batch_size:
            yield _embed(model, batch)
            batch, frames = [], 0
    if batch:
        yield _embed(model, batch)


def ahead(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, window: int
) -> Iterator[R]:
    """Yield function(item) in order, up to `window` of them computed ahead by `threads`."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _embed(
    model: Any, batch: list[tuple[str, Entry | None, Any]]
) -> list[tuple[str, Entry | None, Vector | str]]:
    pixels = [found for _, _, found in batch if isinstance(found, Tensor)]
    if not pixels:
        return batch
    vectors = iter(model.embed_prepared(pixels).cpu().numpy())
    return [
        (path, entry, next(vectors) if isinstance(found, Tensor) else found)
        for path, entry, found in batch
    ]


def query_vector(model: Any, kind: str, query: str | Path) -> Vector:
    """Return the vector [E] of a query, a "text", an "image" or a "video"."""
    found: Tensor = getattr(model, f"encode_{kind}")([query])
    vector: Vector = found[0].float().cpu().numpy()
    return vector
