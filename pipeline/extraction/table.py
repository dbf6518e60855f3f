"""The inputs of a cache as a table: each content once, encoded, with the rows that share it.

Memory: 5 bytes a token of text or a path of a file, 16 a unique input, 8 a row and view, and the
row ids; states and pixels never enter. n unique inputs (samples: a content in one view), m rows,
K views.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cache import CacheLayout, Fingerprint, TapSpec, plan_layout
from cache.format.fingerprint import table_digest
from cache.format.spec import StorageTypes, one_or_each, types_by_tap
from pipeline.backbones import Backbone, Encoded
from pipeline.extraction.media import (
    UNREADABLE,
    Checked,
    Stamp,
    bad_media,
    check_files,
    check_unchanged,
    count_notes,
    in_threads,
)
from pipeline.inputs import KEY_BYTES, Input, InputError, MediaInput, TextInput, view_key

__all__ = ["InputError", "InputTable", "build_table", "describe_truncation", "some"]

Row = tuple[str, Input]
BadMediaPolicy = Literal["error", "skip"]


@dataclass(frozen=True, eq=False)
class InputTable:
    """Encoded unique inputs and the rows that point at them.

    Attributes:
        encoded: the unique inputs, in order of first appearance.
        keys: their content keys, uint8 [n, 16]; of a view above 0 its view key.
        row_to_sample: sample of each row, int64 [m]; [m, K] with views, the clean one first.
        row_ids: name of each row, m strings.
        files: file and stamp of each sample; empty for texts.
        notes: what is odd about how many media files.
        skipped: row id -> why it was left out, of media that cannot be read.
    """

    encoded: Encoded
    keys: NDArray[np.uint8]
    row_to_sample: NDArray[np.int64]
    row_ids: list[str]
    files: tuple[tuple[Path, Stamp], ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_samples(self) -> int:
        """Number of unique inputs, every view counted."""
        return len(self.encoded)

    @property
    def views(self) -> int:
        """Number of views, 1 without any."""
        return 1 if self.row_to_sample.ndim == 1 else self.row_to_sample.shape[1]

    @property
    def clean(self) -> NDArray[np.int64]:
        """The clean sample of each row, int64 [m]."""
        return self.row_to_sample.reshape(len(self.row_ids), self.views)[:, 0]

    @property
    def n_duplicates(self) -> int:
        """Rows whose input another row already brought."""
        return len(self.row_ids) - len(np.unique(self.clean))

    @property
    def row_tokens(self) -> int:
        """Tokens of all rows in one view, duplicates counted each time."""
        return int(self.encoded.lengths[self.clean].sum())

    def first_rows(self, samples: NDArray[np.bool_]) -> list[str]:
        """Return the id of the first row of each sample where the mask [n] is set."""
        first = np.unique(self.row_to_sample, return_index=True)[1] // self.views
        return [self.row_ids[row] for row in first[samples]]

    def check_unchanged(self, samples: NDArray[np.int64]) -> None:
        """Raise `MediaChanged` if a file of `samples` is not what it was; texts never are."""
        for path, stamp in {self.files[i] for i in samples.tolist()} if self.files else ():
            check_unchanged(path, stamp)

    def fingerprint(
        self, backbone: Backbone, types: Mapping[str, str], parts: Mapping[str, Any] | None = None
    ) -> Fingerprint:
        """Return the identity of the cache that holds this table's states.

        Args:
            backbone: what computes them.
            types: storage type of each tap.
            parts: what stands for the backbone's own fingerprint parts.
        """
        inputs: dict[str, Any] = {
            "rows": len(self.row_ids),
            "unique": self.n_samples,
            "sha256": table_digest(self.keys, self.row_to_sample, self.row_ids),
        }
        if self.views > 1:
            inputs["views"] = {"count": self.views, "augmentation": backbone.augmentation}
        computed = str(backbone.compute_dtype).removeprefix("torch.")
        return Fingerprint(
            dict(backbone.fingerprint_parts() if parts is None else parts)
            | {"inputs": inputs, "dtype": {"stored": one_or_each(types), "computed": computed}}
        )

    def layout(
        self,
        backbone: Backbone,
        *,
        dtype: StorageTypes,
        seed: int,
        block_tokens: int,
        taps: Sequence[str] | None = None,
        compression: str = "none",
    ) -> CacheLayout:
        """Lay out the cache of this table: bytes and shards, exactly, with nothing written.

        Args:
            backbone: what would fill it.
            dtype: storage type of all taps of `backbone`, or of each.
            seed: of the order on disk.
            block_tokens: tokens of a block.
            taps: names of the taps of `backbone` to lay out; None for all of them.
            compression: of the numbers; sizes are then the largest that may come out.
        """
        chosen = [tap for tap in backbone.taps if taps is None or tap.name in taps]
        parts = backbone.fingerprint_parts()
        kept = {name: tap for name, tap in parts["taps"].items() if taps is None or name in taps}
        types: Any = types_by_tap(dtype, backbone.taps)
        types = {tap.name: types[tap.name] for tap in chosen}
        return plan_layout(
            taps=chosen,
            lengths=self.lengths(chosen),
            n_samples=self.n_samples,
            row_to_sample=self.row_to_sample,
            row_ids=self.row_ids,
            dtype=types,
            fingerprint=self.fingerprint(backbone, types, parts | {"taps": kept}),
            seed=seed,
            block_tokens=block_tokens,
            provenance=backbone.provenance(),
            compression=compression,
        )

    def lengths(self, taps: Sequence[TapSpec]) -> dict[str, NDArray[np.int64]] | None:
        """Return the lengths of the samples on the ragged axes of `taps`; None without any."""
        axes = {tap.axis for tap in taps if tap.ragged}
        return dict.fromkeys(axes, self.encoded.lengths) or None


def build_table(
    backbone: Backbone,
    inputs: Sequence[Row],
    *,
    views: int = 1,
    augmented: NDArray[np.bool_] | None = None,
    on_bad_media: BadMediaPolicy = "error",
) -> InputTable:
    """Encode the unique ones of `inputs`, given as (row id, input).

    Args:
        backbone: what will read them.
        inputs: the rows.
        views: versions of each augmented row; the others point at their clean one throughout.
        augmented: which rows those are, bool [m]; None for all.
        on_bad_media: "error" refuses media that cannot be read, by name and count; "skip" leaves
            their rows out, having decoded every file once to find them.

    Raises:
        InputError: there are no inputs, or some have no token at all; the message names them.
        BadMedia: files cannot be read.
    """
    checked = check_files(item for _, item in inputs)
    problems = {name: why for name, item in inputs if (why := _problem(checked, item))}
    if problems and on_bad_media == "error":
        raise bad_media(list(problems.items()))
    if on_bad_media == "skip" and checked:
        problems |= _undecodable(backbone, inputs, checked)
    flags = np.ones(len(inputs), dtype=np.bool_) if augmented is None else augmented
    kept = [row for row, (name, _) in enumerate(inputs) if name not in problems]
    if not kept:
        more = bad_media(list(problems.items())) if problems else ""
        raise InputError(f"there are no inputs to extract{': ' * bool(more)}{more}")
    table = _gather(backbone, [inputs[row] for row in kept], flags[kept], views, checked)
    table = replace(
        table, notes=count_notes(f for f in checked.values() if not f.problem), skipped=problems
    )
    empty = table.first_rows(table.encoded.lengths == 0)
    if empty:
        raise InputError(
            f"{len(empty)} input(s) have no token: {some(empty)}. The tokenizer of "
            f"{backbone.name} adds none of its own, so an empty text has no state; drop these rows"
        )
    return table


def _gather(
    backbone: Backbone,
    inputs: Sequence[Row],
    augmented: NDArray[np.bool_],
    views: int,
    checked: Mapping[MediaInput, Checked],
) -> InputTable:
    """Number each content and view once, and encode it."""
    numbers: dict[bytes, int] = {}
    unique: list[Input] = []
    numbered_views: list[int] = []
    files: list[tuple[Path, Stamp]] = []
    row_to_sample = np.empty((len(inputs), views), dtype=np.int64)
    for row, (_, item) in enumerate(inputs):
        known = item
        if not isinstance(item, TextInput):
            known = item._replace(digest=checked[item].key)  # a file is read once
        key = known.key()
        for view in range(views if augmented[row] else 1):
            number = numbers.setdefault(view_key(key, view), len(unique))
            if number == len(unique):
                unique.append(known)
                numbered_views.append(view)
                if not isinstance(item, TextInput):
                    files.append((item.path, checked[item].stamp))
            row_to_sample[row, view:] = number
    return InputTable(
        encoded=backbone.encode(unique, numbered_views) if views > 1 else backbone.encode(unique),
        keys=np.frombuffer(b"".join(numbers), dtype=np.uint8).reshape(-1, KEY_BYTES),
        row_to_sample=row_to_sample if views > 1 else row_to_sample[:, 0],
        row_ids=[row_id for row_id, _ in inputs],
        files=tuple(files),
    )


def _problem(checked: Mapping[MediaInput, Checked], item: Input) -> str:
    return "" if isinstance(item, TextInput) else checked[item].problem


def _undecodable(
    backbone: Backbone, inputs: Sequence[Row], checked: Mapping[MediaInput, Checked]
) -> dict[str, str]:
    """Return row id -> problem of the files with a sound header that do not decode."""

    def problem(item: MediaInput) -> str:
        try:
            backbone.prepare(backbone.encode([item._replace(digest=checked[item].key)]))
        except UNREADABLE as error:
            return str(error)
        return ""

    sound = [item for item, file in checked.items() if not file.problem]
    found = dict(zip(sound, in_threads(problem, sound), strict=True))
    return {
        name: found[item]
        for name, item in inputs
        if not isinstance(item, TextInput) and found.get(item)
    }


def some(names: Sequence[str], shown: int = 5) -> str:
    """Return the first of `names`, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def describe_truncation(table: InputTable, max_length: int | None) -> str | None:
    """Return a sentence on the inputs that were cut, or None if none was."""
    cut = int(table.encoded.truncated.sum())
    if not cut:
        return None
    return (
        f"{cut} of {table.n_samples} unique inputs were cut to {max_length} tokens: "
        f"{some(table.first_rows(table.encoded.truncated))}"
    )
