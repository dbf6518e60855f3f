"""An index folder: the vectors of a media folder's files, and what they were made from.

    index.json               model, media folder, one entry a file in the order of the vectors
    vectors-<digest>.safetensors   float32 [n, E], rows of length 1

index.json is replaced last and names its vectors, so the folder always holds one consistent index.
Cost: 4 E bytes a file (2 kB at E = 512) and about 150 bytes of JSON.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from pipeline.errors import PipelineError
from pipeline.training.files import write_with

INFO = "index.json"
FORMAT = 1
Kind = Literal["image", "video"]
NOUNS = {"image": "images", "video": "videos"}


class GalleryError(PipelineError, ValueError):
    """An index cannot be built or searched; the message says why and what to do."""


class StaleIndex(GalleryError):  # noqa: N818 (reads as what is wrong)
    """The model is not the one an index was built with, or the index is unfinished."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One indexed file.

    Attributes:
        path: relative to the media folder, with forward slashes.
        bytes: size of the file.
        modified: its time of change, in nanoseconds.
        key: digest of its content, hexadecimal.
    """

    path: str
    bytes: int
    modified: int
    key: str

    def unchanged(self, media: Path) -> bool:
        """Whether the file in `media` still has this size and time of change."""
        try:
            found = (media / self.path).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.bytes, self.modified)


@dataclass(frozen=True, kw_only=True)
class Index:
    """The vectors of a media folder.

    Attributes:
        kind: what was indexed.
        media: the media folder, where it was.
        model: folder of the exported model, where it was.
        digest: of the model's files, see `pipeline.gallery.embed.model_digest`.
        entries: one a file.
        vectors: float32 [n, E] in the order of `entries`.
        skipped: path -> reason, of the files that could not be read.
        complete: False while a build is unfinished.
    """

    kind: Kind
    media: Path
    model: Path
    digest: str
    entries: tuple[Entry, ...]
    vectors: NDArray[np.float32]
    skipped: Mapping[str, str]
    complete: bool

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the index in `folder`.

        Raises:
            GalleryError: there is none, it is damaged, or another version wrote it.
        """
        if not (folder / INFO).is_file():
            raise GalleryError(f"{folder} holds no index ({INFO}); `index` builds one")
        try:
            info = json.loads((folder / INFO).read_text(encoding="utf-8"))
            if info["format"] != FORMAT:
                raise GalleryError(f"the index {folder} is not of format {FORMAT}: build it again")
            vectors = load_file(folder / info["vectors"])["vectors"]
            found = cls(
                kind=info["kind"],
                media=Path(info["media"]),
                model=Path(info["model"]["path"]),
                digest=info["model"]["digest"],
                entries=tuple(Entry(**entry) for entry in info["entries"]),
                vectors=vectors,
                skipped=info["skipped"],
                complete=info["complete"],
            )
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            if isinstance(error, GalleryError):
                raise
            raise GalleryError(
                f"the index {folder} is damaged ({type(error).__name__}: {error}): delete it and "
                "build it again"
            ) from error
        if len(found.entries) != len(vectors):
            raise GalleryError(
                f"the index {folder} is damaged: {len(found.entries)} entries and {len(vectors)} "
                "vectors; delete it and build it again"
            )
        return found

    def write(self, folder: Path) -> None:
        """Replace the index in `folder` by this one."""
        folder.mkdir(parents=True, exist_ok=True)
        data = save({"vectors": np.ascontiguousarray(self.vectors, np.float32)})
        name = f"vectors-{hashlib.blake2b(data, digest_size=8).hexdigest()}.safetensors"
        info = {
            "format": FORMAT,
            "complete": self.complete,
            "kind": self.kind,
            "media": str(self.media),
            "model": {"path": str(self.model), "digest": self.digest},
            "vectors": name,
            "skipped": dict(self.skipped),
            "entries": [asdict(entry) for entry in self.entries],
        }
        text = json.dumps(info, indent=1)  # plain ASCII: file names need not be valid UTF-8
        write_with(folder / name, lambda path: path.write_bytes(data))
        write_with(folder / INFO, lambda path: path.write_text(text + "\n", encoding="utf-8"))
        for path in folder.glob("vectors-*.safetensors"):
            if path.name != name:
                path.unlink()


def shown(path: str) -> str:
    """Return a file name that can be printed, whatever bytes it holds."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Return the first `limit` names, and how many more there are."""
    found = [shown(name) for name in names]
    more = f" and {len(found) - limit:,} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more
