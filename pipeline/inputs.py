"""Inputs and their content keys: the link between a task's examples and a cache's samples.

A sample is found in a cache by what it holds, not by its row number or its path, so any file whose
sentences, images or videos are in the cache can be trained on: reordered, cut down, moved, or with
other labels. Cost: one BLAKE2b digest an input, about 1 us a sentence and 1 GB/s of a file.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipeline.errors import PipelineError

KEY_BYTES = 16
"""Length of a content key, in bytes; 2**64 inputs before a collision is likely."""


SPANS = "spans"
"""Tap that holds where each token begins and ends in its text, in characters, [T, 2]; both 0 for
special tokens. Exact in float32."""
FACTS = (SPANS,)
"""Taps that hold facts of the input instead of states; no side network sees them."""


class InputError(PipelineError, ValueError):
    """Inputs cannot be used; the message names their ids."""


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


class ImageInput(NamedTuple):
    """One image; `digest` is its key where it is known already, so that a file is read once."""

    path: Path
    digest: bytes | None = None

    def key(self) -> bytes:
        """Return the `KEY_BYTES` digest of the file's bytes, wherever the file lies.

        Raises:
            OSError: the file cannot be read.
        """
        return self.digest or _file_key(b"image", self.path)

    def read_as(self, modality: str) -> "ImageInput | VideoInput":
        """Return the file as what a backbone of this modality reads."""
        return VideoInput(self.path) if modality == "video" else self


class VideoInput(NamedTuple):
    """One video; `digest` is its key where it is known already, so that a file is read once."""

    path: Path
    digest: bytes | None = None

    def key(self) -> bytes:
        """Return the `KEY_BYTES` digest of the file's bytes, wherever the file lies.

        Raises:
            OSError: the file cannot be read.
        """
        return self.digest or _file_key(b"video", self.path)

    def read_as(self, modality: str) -> "ImageInput | VideoInput":
        """Return the file as what a backbone of this modality reads."""
        return ImageInput(self.path) if modality == "image" else self


MediaInput = ImageInput | VideoInput
Input = TextInput | ImageInput | VideoInput
_I = TypeVar("_I", bound=Input)


def describe(given: Input) -> str:
    """Return an input in a few words, for a message: a text's beginning, or a path."""
    return repr(given.text[:60]) if isinstance(given, TextInput) else str(given.path)


def view_key(key: bytes, view: int) -> bytes:
    """Return the key of an input's `view`, counted from 0; view 0, the clean one, has `key` itself.

    Everything random about a view is seeded by it, so that no view depends on any order.
    """
    if view == 0:
        return key
    content = key + view.to_bytes(4, "little")
    return hashlib.blake2b(content, digest_size=KEY_BYTES, person=b"view").digest()


def unique_inputs(inputs: Iterable[_I]) -> list[_I]:
    """Return the inputs without duplicates, in order of first appearance."""
    return list(dict.fromkeys(inputs))


def _file_key(kind: bytes, path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=kind)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
