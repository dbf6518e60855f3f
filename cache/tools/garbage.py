"""What killed runs left behind: named first, deleted only when told so.

Nothing that a reader or a resumed run would use is ever on the list: no finished shard, no
metadata, no unfinished cache. A cache that a living process writes is left out. Cost: one walk over
the folders.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import CacheError, CacheLocked, CacheNotFound
from ..format.geometry import ACTIVATIONS, COMPLETE, INDEX, LEDGER, LOCK, ROOT
from ..memory import size
from ..storage.files import PARTIAL, WriterLock, is_locked, sync_folder
from ..storage.location import local_path
from ..storage.records import Manifest, read_ledger, read_manifest
from .listing import find_caches

_OURS = {ACTIVATIONS, INDEX, LEDGER, ROOT, COMPLETE}


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """One file that nobody needs: where, how large, and why it is not needed."""

    path: Path
    nbytes: int
    why: str


@dataclass(frozen=True, kw_only=True)
class GcReport:
    """What `gc` found, and whether it is gone now.

    Attributes:
        items: the leftovers.
        deleted: whether they were deleted.
        skipped: cache -> why it was left alone.
    """

    items: tuple[Leftover, ...]
    deleted: bool
    skipped: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all leftovers."""
        return sum(item.nbytes for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        items = [asdict(item) | {"path": str(item.path)} for item in self.items]
        return {
            "items": items,
            "nbytes": self.nbytes,
            "deleted": self.deleted,
            "skipped": self.skipped,
        }

    def render(self) -> str:
        """Return the report as lines of text."""
        lines = [f"{size(item.nbytes):>12}  {item.path}: {item.why}" for item in self.items]
        lines += [f"left alone: {path}: {why}" for path, why in self.skipped.items()]
        what = f"{len(self.items)} leftovers, {self.nbytes:,} bytes"
        if not self.items:
            lines.append("no leftovers")
        else:
            lines.append(f"{what}: deleted" if self.deleted else f"{what}: nothing was deleted")
        return "\n".join(lines)


def gc(folder: str | Path, *, delete: bool = False) -> GcReport:
    """List what killed runs left in the caches of `folder` and below; delete it only if told so.

    Leftovers are temporary files, shard files that the ledger does not list, the lock of a finished
    cache, and folders in which a writer was killed before its metadata were there.

    Args:
        folder: a cache, or a folder of caches.
        delete: delete what is listed.

    Raises:
        CacheNotFound: there is no such folder.
    """
    root = local_path(folder, "cache gc")
    if not root.is_dir():
        raise CacheNotFound(f"{root} is no folder; give a cache or a folder of caches")
    items: list[Leftover] = []
    skipped: dict[str, str] = {}
    for path in find_caches(root):
        try:
            items += _clean(path) if delete else _leftovers(path)
        except (CacheError, OSError) as error:
            skipped[str(path)] = str(error)
    return GcReport(items=tuple(items), deleted=delete and bool(items), skipped=skipped)


def _clean(path: Path) -> list[Leftover]:
    """Delete the leftovers of one cache under its lock; return them."""
    had_lock = (path / LOCK).exists()
    if not _leftovers(path):
        return []
    lock = WriterLock(path / LOCK)
    try:
        items = _leftovers(path, mine=True)
        items = [item for item in items if had_lock or item.path.name != LOCK]
        for item in items:
            if item.path.name != LOCK:
                item.path.unlink(missing_ok=True)
                _remove_empty(item.path.parent, path)
        if (path / COMPLETE).exists() or not (path / ROOT).exists():
            (path / LOCK).unlink(missing_ok=True)
        sync_folder(path)
        if not any(path.iterdir()):
            path.rmdir()
    finally:
        lock.release()
    return items


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _leftovers(path: Path, *, mine: bool = False) -> list[Leftover]:
    """Return the leftovers of one cache, in order.

    Raises:
        CacheLocked: a living process writes it.
        CacheDamaged, CacheVersionError: its records cannot be read, so nothing is known.
    """
    if not mine and is_locked(path / LOCK):
        raise CacheLocked("a living process writes it")
    files = sorted(file for file in path.rglob("*") if file.is_file() or file.is_symlink())
    if not (path / ROOT).exists():
        foreign = [file for file in files if not _is_beginning(file.relative_to(path))]
        if foreign or (path / COMPLETE).exists():
            raise CacheError(f"{ROOT} is missing, and it holds more than the beginning of a cache")
        return [_leftover(file, "of a cache whose metadata were never written") for file in files]
    listed = _listed(path)
    items = []
    for file in files:
        parts = file.relative_to(path).parts
        if file.name.endswith(PARTIAL) and parts[0].removesuffix(PARTIAL) in _OURS:
            items.append(_leftover(file, "temporary file of a killed writer"))
        elif parts[0] == ACTIVATIONS and parts[2:3] == ("c",) and file not in listed:
            items.append(_leftover(file, "shard file that the ledger does not list"))
        elif parts == (LOCK,) and (path / COMPLETE).exists():
            items.append(_leftover(file, "lock of a writer that has finished"))
    return items


def _is_beginning(file: Path) -> bool:
    """Return whether a writer makes this file before the root metadata."""
    parts = file.parts
    inside = parts[0] in (ACTIVATIONS, INDEX) and parts[-1].removesuffix(PARTIAL) == ROOT
    chunk = parts[0] == INDEX and parts[2:3] == ("c",)
    return parts == (LOCK,) or parts == (ROOT + PARTIAL,) or inside or chunk


def _listed(path: Path) -> set[Path]:
    """Return the shard files that count."""
    found: Manifest = read_manifest(path)
    config, geometry = found.config, found.geometry
    entries = read_ledger(path / LEDGER, tolerant=True)
    return {
        path / geometry.shard_path(stack, shard)
        for shard, entry in entries.items()
        if entry.config == config and 0 <= shard < geometry.n_shards
        for stack in geometry.stacks
    }


def _leftover(file: Path, why: str) -> Leftover:
    return Leftover(path=file, nbytes=file.lstat().st_size, why=why)
