"""Which names a list of patterns selects: the one rule for taps, in extraction and in training.

A pattern is a glob, and may end with a Python slice of what it matches, in the order of the names:
`encoder.layer.*[::2]` is every second layer, `encoder.layer.*[-4:]` the last four, `*[-1]` the last
one. A number without a colon and a minus, as in `stage.[12]`, is a glob's set of characters.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

_SLICED = re.compile(r"(.+)\[(-\d+|-?\d*:-?\d*(?::-?\d*)?)\]")


def matches(known: Sequence[str], pattern: str) -> tuple[str, ...]:
    """Return the `known` names that `pattern` selects, in their order; none if there are none."""
    found = _SLICED.fullmatch(pattern)
    glob = found[1] if found else pattern
    names = [name for name in known if fnmatchcase(name, glob)]
    if found is None:
        return tuple(names)
    start, *more = (int(part) if part.strip("-") else None for part in found[2].split(":"))
    if not more:  # a negative index
        return tuple(names[start : (start or 0) + 1 or None]) if -(start or 0) <= len(names) else ()
    if more[1:] == [0]:  # no such slice
        return ()
    return tuple(sorted(names[slice(start, *more)], key=list(known).index))


def select_names(
    known: Sequence[str], patterns: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the `known` names that any of `patterns` selects, and the patterns that select none.

    Args:
        known: names in their order, which the result keeps.
        patterns: see above.
    """
    found = {pattern: set(matches(known, pattern)) for pattern in patterns}
    wanted = set().union(*found.values())
    lost = tuple(pattern for pattern, names in found.items() if not names)
    return tuple(name for name in known if name in wanted), lost
