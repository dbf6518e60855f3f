"""Folders that appear whole or not at all: staged beside their place, flushed, renamed.

Replacing an existing export takes two renames; between them, for microseconds, there is none.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.fused.package import PACKAGES
from pipeline.training.files import sync_folder


class OutputExists(FileExistsError):  # noqa: N818 (reads as what is wrong)
    """The folder to write is in use."""


def check_target(out: Path, *, force: bool) -> None:
    """Refuse a target that would lose something.

    Raises:
        OutputExists: `out` is a file, or a non-empty folder and either `force` is off or it is not
            an exported model.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_export(out):
        raise OutputExists(
            f"{out} exists and is no exported model, so it is not replaced: choose another folder "
            "or move it away"
        )
    if not force:
        raise OutputExists(f"{out} holds an exported model: choose another folder, or force=True")


def is_export(folder: Path) -> bool:
    """Whether `folder` holds a fused model."""
    return export_type(folder) is not None


def export_type(folder: Path) -> str | None:
    """Return the `model_type` of the fused model in `folder`, None if there is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = config.get("model_type") if isinstance(config, dict) else None
    return found if found in PACKAGES else None


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder that takes the name `out` on success and vanishes on failure.

    Raises:
        OutputExists: see `check_target`.
    """
    check_target(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        for path in stage.iterdir():
            path.chmod(0o644)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        check_target(out, force=force)
        _take_place(stage, out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _take_place(stage: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    stage.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)
