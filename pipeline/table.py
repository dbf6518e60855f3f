"""The inputs of a cache as a table: each content once, tokenised, with the rows that share it.

Memory: 5 bytes a token, 16 a unique input, 8 a row, and the row ids; states never enter. n unique
inputs (samples), m rows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache import CacheLayout, Fingerprint, plan_layout
from cache.spec import StorageType
from pipeline.backbones import Encoded, TextBackbone
from pipeline.errors import PipelineError
from pipeline.inputs import KEY_BYTES, TextInput


class InputError(PipelineError, ValueError):
    """Inputs cannot be encoded; the message names their ids."""


@dataclass(frozen=True, eq=False)
class InputTable:
    """Tokenised unique inputs and the rows that point at them.

    Attributes:
        encoded: the unique inputs, in order of first appearance.
        keys: their content keys, uint8 [n, 16].
        row_to_sample: sample of each row, int64 [m].
        row_ids: name of each row, m strings.
    """

    encoded: Encoded
    keys: NDArray[np.uint8]
    row_to_sample: NDArray[np.int64]
    row_ids: list[str]

    @property
    def n_samples(self) -> int:
        """Number of unique inputs."""
        return len(self.encoded)

    @property
    def n_duplicates(self) -> int:
        """Rows whose input another row already brought."""
        return len(self.row_ids) - self.n_samples

    @property
    def row_tokens(self) -> int:
        """Tokens of all rows, duplicates counted each time."""
        return int(self.encoded.lengths[self.row_to_sample].sum())

    def first_rows(self, samples: NDArray[np.bool_]) -> list[str]:
        """Return the id of the first row of each sample where the mask [n] is set."""
        first = np.unique(self.row_to_sample, return_index=True)[1]
        return [self.row_ids[row] for row in first[samples]]

    def fingerprint(self, backbone: TextBackbone, dtype: StorageType) -> Fingerprint:
        """Return the identity of the cache that holds this table's states."""
        rows = "\n".join(self.row_ids).encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(self.keys.tobytes())
        digest.update(self.row_to_sample.astype("<i8").tobytes())
        digest.update(rows)
        return Fingerprint(
            backbone.fingerprint_parts()
            | {
                "inputs": {
                    "rows": len(self.row_ids),
                    "unique": self.n_samples,
                    "sha256": digest.hexdigest(),
                },
                "dtype": {
                    "stored": dtype,
                    "computed": str(backbone.compute_dtype).removeprefix("torch."),
                },
            }
        )

    def layout(
        self, backbone: TextBackbone, *, dtype: StorageType, seed: int, block_tokens: int
    ) -> CacheLayout:
        """Lay out the cache of this table: bytes and shards, exactly, with nothing written."""
        return plan_layout(
            taps=backbone.taps,
            lengths={"tokens": self.encoded.lengths},
            n_samples=self.n_samples,
            row_to_sample=self.row_to_sample,
            row_ids=self.row_ids,
            dtype=dtype,
            fingerprint=self.fingerprint(backbone, dtype),
            seed=seed,
            block_tokens=block_tokens,
            origin=backbone.origin(),
        )


def build_table(backbone: TextBackbone, inputs: Sequence[tuple[str, TextInput]]) -> InputTable:
    """Tokenise the unique ones of `inputs`, given as (row id, input).

    Raises:
        InputError: there are no inputs, or some have no token at all; the message names them.
    """
    if not inputs:
        raise InputError("there are no inputs to extract")
    numbers: dict[bytes, int] = {}
    unique: list[TextInput] = []
    row_to_sample = np.empty(len(inputs), dtype=np.int64)
    for row, (_, item) in enumerate(inputs):
        number = row_to_sample[row] = numbers.setdefault(item.key(), len(unique))
        if number == len(unique):
            unique.append(item)
    table = InputTable(
        encoded=backbone.encode(unique),
        keys=np.frombuffer(b"".join(numbers), dtype=np.uint8).reshape(-1, KEY_BYTES),
        row_to_sample=row_to_sample,
        row_ids=[row_id for row_id, _ in inputs],
    )
    empty = table.first_rows(table.encoded.lengths == 0)
    if empty:
        raise InputError(
            f"{len(empty)} input(s) have no token: {some(empty)}. The tokenizer of "
            f"{backbone.name} adds none of its own, so an empty text has no state; drop these rows"
        )
    return table


def some(names: Sequence[str], shown: int = 5) -> str:
    """Return the first of `names`, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def describe_truncation(table: InputTable, max_length: int) -> str | None:
    """Return a sentence on the inputs that were cut, or None if none was."""
    cut = table.first_rows(table.encoded.truncated)
    if not cut:
        return None
    return (
        f"{len(cut)} of {table.n_samples} unique inputs were cut to {max_length} tokens: "
        f"{some(cut)}"
    )
