"""Text inputs and their content keys: the link between a task's examples and a cache's samples.

A sample is found in a cache by what it says, not by its row number, so any file whose sentences
are in the cache can be trained on: reordered, cut down, or with other labels. Cost: one BLAKE2b
digest an input, about 1 us.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

KEY_BYTES = 16
"""Length of a content key, in bytes; 2**64 inputs before a collision is likely."""


class TextInput(NamedTuple):
    """One input of a text backbone: a sentence, or a pair that the tokenizer joins into one."""

    text: str
    pair: str | None = None

    def key(self) -> bytes:
        """Return the `KEY_BYTES` digest of the content; equal content gives an equal key."""
        digest = hashlib.blake2b(digest_size=KEY_BYTES)
        for part in (self.text, self.pair):
            if part is None:
                digest.update(b"\x00")
                continue
            data = part.encode("utf-8", "surrogatepass")
            digest.update(b"\x01" + len(data).to_bytes(8, "little") + data)
        return digest.digest()


def unique_inputs(inputs: Iterable[TextInput]) -> list[TextInput]:
    """Return the inputs without duplicates, in order of first appearance."""
    return list(dict.fromkeys(inputs))
