"""MSVD: `{train,val,test}_list.txt` with a video's name a line, and `raw-captions.pkl`.

The pickle {name: [[token, ...], ...]} is read by an unpickler that builds containers, texts, bytes
and numbers and nothing else, so that a file from a stranger cannot run code.
"""

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import DataError
from pipeline.reading.config import CaptionData
from pipeline.reading.files import read_lines
from pipeline.reading.formats.rows import CaptionRow, Reading, Readings

SPLITS = {"train": "train_list.txt", "dev": "val_list.txt", "test": "test_list.txt"}
CAPTIONS = "raw-captions.pkl"


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for the persistent object {pid!r}")


def plain_unpickle(path: Path) -> Any:
    """Read a pickle of lists, tuples, dicts, sets, texts, bytes, numbers and None.

    Python 2's byte strings are read as UTF-8.

    Raises:
        DataError: there is no such file, it is no pickle, or it holds anything else.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds a text that is not UTF-8 ({error.reason})") from error
    except (
        pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError,
        MemoryError, OverflowError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise DataError(
            f"{path} is refused: {error}. Only containers, texts, bytes and numbers may be in it"
        ) from error


def read_msvd(folder: Path, config: CaptionData) -> Readings:
    """Return the rows by split.

    Raises:
        DataError: a file is missing or unusable.
    """
    captions = plain_unpickle(folder / CAPTIONS)
    if not isinstance(captions, dict):
        raise DataError(
            f"{folder / CAPTIONS} must hold a dict of video -> captions, not "
            f"{type(captions).__name__}"
        )
    named = {_plain(name): sentences for name, sentences in captions.items()}
    return {
        split: _split(folder / file, named, config)
        for split, file in SPLITS.items()
        if split == "train" or (folder / file).is_file()
    }


def _split(path: Path, captions: dict[str, Any], config: CaptionData) -> Reading:
    reading = Reading(str(path))
    seen: set[str] = set()
    for number, line in enumerate(read_lines(path, config.encoding_errors), start=1):
        if not (name := line.strip()):
            continue
        place = f"line {number}"
        if name in seen:
            reading.problems.add("duplicate id", f"{name!r} ({place})")
            continue
        seen.add(name)
        sentences = captions.get(name)
        if not isinstance(sentences, list | tuple) or not sentences:
            reading.problems.add(f"no caption in {CAPTIONS}", f"{name!r} ({place})")
            continue
        reading.rows += [CaptionRow(name, name, _sentence(each), place) for each in sentences]
    return reading


def _sentence(value: Any) -> str:
    return " ".join(map(_plain, value)) if isinstance(value, list | tuple) else _plain(value)


def _plain(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
