"""How taps are stored: types by patterns, and compression; for `extract` and `cache convert`.

Options become a type for each tap here, before anything is read or written; costs nothing.
"""

from collections.abc import Sequence
from typing import Any, get_args

from cache import Cache
from cache.format.compression import parse_compression
from cache.format.spec import StorageType
from pipeline.config import ConfigError
from pipeline.selection import matches


def parse_change(text: str) -> tuple[str, StorageType]:
    """Return pattern and storage type of 'encoder.layer.0[0-3]=int8'.

    Raises:
        ValueError: it is no such text.
    """
    pattern, _, dtype = (part.strip() for part in text.rpartition("="))
    known: tuple[Any, ...] = get_args(StorageType)
    if not pattern or dtype not in known:
        raise ValueError(
            f"a type for some taps is PATTERN=TYPE, such as 'encoder.layer.0[0-3]=int8', with one "
            f"of {', '.join(known)}; not {text!r}"
        )
    return pattern, next(each for each in known if each == dtype)


def checked_changes(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return `texts`, each a PATTERN=TYPE; raise `ValueError` for another."""
    for text in texts:
        parse_change(text)
    return texts


def checked_compression(text: str) -> str:
    """Return `text`, a compression of chunks; raise `ValueError` for another."""
    parse_compression(text.strip())
    return text.strip()


def changed_types(known: Sequence[str], texts: Sequence[str]) -> dict[str, StorageType]:
    """Return the type of each of the `known` taps that a PATTERN=TYPE matches, the last one's.

    Patterns are those of `--taps` (see `pipeline.selection`).

    Raises:
        ConfigError: a text is no PATTERN=TYPE, or its pattern matches nothing.
    """
    types: dict[str, StorageType] = {}
    problems = []
    for text in texts:
        try:
            pattern, dtype = parse_change(text)
        except ValueError as error:
            problems.append(str(error))
            continue
        found = matches(known, pattern)
        if not found:
            problems.append(f"no tap matches {pattern!r}; there are {', '.join(known)}")
        types |= dict.fromkeys(found, dtype)
    if problems:
        raise ConfigError("; ".join(problems))
    return types


def stored_types(
    known: Sequence[str], default: StorageType, texts: Sequence[str]
) -> dict[str, StorageType]:
    """Return the storage type of each of the `known` taps: `default` unless a text changes it.

    Raises:
        ConfigError: see `changed_types`.
    """
    return dict.fromkeys(known, default) | changed_types(known, texts)


def converted_types(
    path: str, default: StorageType | None, taps: Sequence[str] | None, texts: Sequence[str]
) -> dict[str, StorageType]:
    """Return the storage types that a conversion of the cache at `path` is asked for.

    Args:
        path: of the cache.
        default: of its taps; None lets those keep theirs that no text names.
        taps: names of those that are kept; None for all.
        texts: PATTERN=TYPE.

    Raises:
        ConfigError: see `changed_types`.
    """
    names = [tap.name for tap in Cache.open(path).taps if taps is None or tap.name in taps]
    changed = changed_types(names, texts)
    return changed if default is None else dict.fromkeys(names, default) | changed
