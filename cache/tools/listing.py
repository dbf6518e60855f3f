"""Which caches lie below a folder, and in what state. Reads records and sizes, no activations.

Cost: one walk over the folders, and for each cache one `stat` a file.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import CacheError, CacheNotFound, CacheVersionError
from ..format.geometry import COMPLETE, LOCK, ROOT
from ..format.manifest import MANIFEST
from ..format.spec import describe_types
from ..memory import size
from ..storage.location import local_path
from ..storage.records import check_metadata, read_finished, read_manifest

State = Literal["complete", "unfinished", "damaged", "other version"]
_PEEK = 2**16


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One cache of a listing.

    Attributes:
        path: of its folder.
        state: "complete", "unfinished" (the command that made it goes on), "damaged" (see
            `problem`) or "other version".
        samples: contents stored; None if that cannot be read.
        rows: of its table.
        taps: names.
        dtype: storage type.
        shards: (finished, all).
        nbytes: of all files.
        provenance: what its maker noted: names, places, versions.
        problem: what is wrong, empty if nothing is.
    """

    path: Path
    state: State
    samples: int | None
    rows: int | None
    taps: tuple[str, ...]
    dtype: str
    shards: tuple[int, int]
    nbytes: int
    provenance: dict[str, Any]
    problem: str

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON values."""
        lists = {"taps": list(self.taps), "shards": list(self.shards)}
        return asdict(self) | {"path": str(self.path)} | lists


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What `ls` found, by path."""

    folder: Path
    caches: tuple[CacheEntry, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the listing as JSON values."""
        return {"folder": str(self.folder), "caches": [each.to_dict() for each in self.caches]}

    def render(self) -> str:
        """Return the listing as lines of text."""
        if not self.caches:
            return f"no caches below {self.folder}"
        lines = []
        for each in self.caches:
            done = "" if each.state == "complete" else f" ({each.shards[0]} of {each.shards[1]})"
            count = "?" if each.samples is None else f"{each.samples:,}"
            name = str(each.provenance.get("name", each.provenance.get("backbone", "")))
            lines.append(
                f"{each.state + done:<24} {size(each.nbytes):>12}  {count:>10} samples "
                f"{len(each.taps):>3} taps  {each.dtype:<9} {each.path}  {name}".rstrip()
            )
            if each.problem:
                lines.append(f"    {each.problem}")
        total = sum(each.nbytes for each in self.caches)
        return "\n".join([*lines, f"{len(self.caches)} caches, {size(total)}"])


def ls(folder: str | Path) -> Listing:
    """List the caches in `folder` and below, itself included.

    Raises:
        CacheNotFound: there is no such folder.
    """
    root = local_path(folder, "cache ls")
    if not root.is_dir():
        raise CacheNotFound(f"{root} is no folder; give one that holds caches")
    return Listing(folder=root, caches=tuple(describe(path) for path in find_caches(root)))


def find_caches(root: Path) -> Iterator[Path]:
    """Yield every folder that holds a cache or the beginning of one, sorted by path.

    Symbolic links are not followed, nor is a cache searched for others.
    """
    for folder, names, files in os.walk(root):
        names.sort()
        if is_cache(Path(folder), files):
            names.clear()
            yield Path(folder)


def is_cache(path: Path, files: list[str]) -> bool:
    """Return whether `path` has the files of a cache, readable or not."""
    if ROOT not in files:
        return LOCK in files
    if LOCK in files or COMPLETE in files:
        return True
    try:
        with (path / ROOT).open("rb") as file:
            return f'"{MANIFEST}"'.encode() in file.read(_PEEK)
    except OSError:
        return False


def describe(path: Path) -> CacheEntry:
    """Return the state of one cache; whatever is wrong with it becomes its `problem`."""
    state: State = "complete" if (path / COMPLETE).is_file() else "unfinished"
    found, finished, problem = None, 0, ""
    try:
        found = read_manifest(path)
        check_metadata(found)
        finished = len(read_finished(found, allow_incomplete=True))
    except CacheNotFound as error:
        begun = state == "unfinished"
        state = "unfinished" if begun else "damaged"
        problem = "only started: killed before its metadata were written" if begun else str(error)
    except CacheVersionError as error:
        state, problem = "other version", str(error)
    except (CacheError, OSError) as error:
        state, problem = "damaged", str(error)
    geometry = found.geometry if found else None
    return CacheEntry(
        path=path,
        state=state,
        samples=geometry.n_samples if geometry else None,
        rows=geometry.n_rows if geometry else None,
        taps=tuple(tap.name for tap in geometry.taps) if geometry else (),
        dtype=describe_types(geometry.dtype) if geometry else "?",
        shards=(finished, geometry.n_shards if geometry else 0),
        nbytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        provenance=found.provenance if found else {},
        problem=problem,
    )
