"""Entities in IOB2 tags, counted as in the CoNLL shared tasks: right if type and all words are.

Tjong Kim Sang and De Meulder 2003. An entity begins with B- and goes on with I- of its type; an I-
that follows neither is none (seqeval with mode "strict" and scheme IOB2; conlleval, which also
scores other schemes, lets one begin there). Cost: one pass.
"""

from collections.abc import Sequence

Entity = tuple[str, int, int]
"""Type, first word, and the word behind the last."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """Return the entities of a sentence's tags."""
    found: set[Entity] = set()
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        if kind and tag != f"I-{kind}":
            found.add((kind, start, place))
            kind = ""
        if tag.startswith("B-"):
            kind, start = tag[2:], place
    return found


def matches(wanted: Sequence[str], given: Sequence[str]) -> tuple[int, int, int]:
    """Return how many entities are right, wanted and given."""
    right, other = entities(wanted), entities(given)
    return len(right & other), len(right), len(other)
