"""What a data set is to every stage: splits of examples with one input a tower, and targets.

Targets live here and never in a cache: any file whose inputs are in the cache can be trained on.
Memory: about 1 KB an example; no media file is opened.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.errors import DataError
from pipeline.inputs import Input, TextInput

__all__ = ["DataConfig", "DataError", "Dataset", "Example", "Examples", "Labelled"]

EncodingErrors = Literal["strict", "replace"]
Ints = NDArray[np.int64]


class DataConfig(Config):
    """Which files, and how they are split: what every data set has in common."""

    task: str
    """What is learned; it decides which options there are (`--task NAME --help`)."""
    train: Path
    """Training file, or a folder with all splits."""
    dev: Path | None = None
    """Development file; if absent, it comes from the folder or is split off the training rows."""
    test: Path | None = None
    """Test file, labelled or not; if absent, it comes from the folder or is split off."""
    header: bool = True
    """Whether TSV and CSV files start with a line of column names."""
    fractions: tuple[float, float, float] = (0.68, 0.12, 0.20)
    """Shares of train, dev and test where rows must be split; rows that belong together stay
    together."""
    split_seed: int = 0
    """Seed of that split."""
    fit_on_dev: bool = False
    """Add the development rows to the training rows: for the last fit, once every setting is
    chosen. There is no dev split then, and training keeps its last epoch."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with unusable rows: missing or empty fields, wrong numbers of fields."""
    encoding_errors: EncodingErrors = "strict"
    """Bytes that are not UTF-8: "strict" refuses the file, "replace" marks them."""

    @property
    def skips_missing(self) -> bool:
        """Whether examples whose input is not in the cache are left out."""
        return False

    def contradictions(self) -> list[str]:
        """Return what is wrong with the shares."""
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6 or not self.fractions[0]:
            return [f"fractions must be shares that sum to 1, not {self.fractions}"]
        return []


class Examples(Protocol):
    """The n examples of one split; an example is what one row of a batch holds."""

    def __len__(self) -> int: ...

    def inputs(self, tower: str, modality: str) -> Sequence[Input]:
        """Return the input of each example that a tower reads, n of them."""

    def rows(self, tower: str, modality: str) -> list[tuple[str, Input]]:
        """Return what there is to extract for a tower, each once where it has a name: (id, it).

        The id begins with the split: "train/12".
        """

    @property
    def groups(self) -> Sequence[Any]:
        """What each example must stay together with in folds, n hashable values."""

    @property
    def strata(self) -> NDArray[Any] | None:
        """Classes [n] that folds get their share of; None for none."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What there is how much of, for run.json."""

    def take(self, rows: Ints) -> Self:
        """Return the examples of these positions."""

    def digest(self) -> bytes:
        """Return what is equal for equal targets of equal inputs in this order."""


class Example(NamedTuple):
    """One row: an input for each tower, and its target."""

    id: str
    inputs: tuple[Input, ...]
    target: Any
    """Class index, score or tags; None where the label is hidden."""
    group: str | None = None
    """What it must stay together with, beside equal inputs."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Examples with one target each.

    Attributes:
        examples: in the order of their files.
        towers: name of the tower that reads each of an example's inputs.
    """

    examples: Sequence[Example]
    towers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def targets(self) -> list[Any] | None:
        """The target of each example; None if any is hidden."""
        found = [example.target for example in self.examples]
        return None if not found or any(target is None for target in found) else found

    def inputs(self, tower: str, modality: str) -> list[Input]:
        """Return the input of each example that a tower reads."""
        place = self.towers.index(tower)
        return [as_modality(example.inputs[place], modality) for example in self.examples]

    def rows(self, tower: str, modality: str) -> list[tuple[str, Input]]:
        """Return each input with its example's id; of several towers, "id#a", "id#b"."""
        place = self.towers.index(tower)
        end = f"#{'abcdefgh'[place]}" if len(self.towers) > 1 else ""
        found = zip(self.examples, self.inputs(tower, modality), strict=True)
        return [(f"{example.id}{end}", given) for example, given in found]

    @property
    def groups(self) -> list[int]:
        """Return a number for each example; equal inputs and equal groups have one number."""
        return clusters(self.examples)

    @property
    def strata(self) -> NDArray[Any] | None:
        """Class of each example, [n]; scores are cut into parts of about equal size."""
        targets = self.targets
        if targets is None or not isinstance(targets[0], int | float):
            return None
        found = np.asarray(targets)
        return found if isinstance(targets[0], int) else _bins(found)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of examples."""
        return {"examples": len(self)}

    def take(self, rows: Ints) -> "Labelled":
        """Return the examples of these positions."""
        return replace(self, examples=[self.examples[row] for row in rows.tolist()])

    def digest(self) -> bytes:
        """Return the ids' order, inputs and targets, one after another."""
        return b"".join(
            b"".join(given.key() for given in example.inputs) + f":{example.target}".encode()
            for example in self.examples
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """The splits "train", "dev" and, where there is one, "test"."""

    splits: Mapping[str, Examples]
    config: DataConfig
    labels: tuple[str, ...] | None = None
    """Class names in order, where there are classes."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows left out, by reason (`bad_rows: drop`)."""
    unused: tuple[str, ...] = ()
    """Media files that no row speaks of."""

    def split(self, name: str) -> Any:
        """Return the examples of one split, of the class that the task's reader makes.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        if not len(self.splits.get(name, ())):
            known = ", ".join(f"{each} ({len(rows)})" for each, rows in self.splits.items())
            raise DataError(f"there are no examples in the split {name!r}; there are: {known}")
        return self.splits[name]


def as_modality(given: Input, modality: str) -> Input:
    """Return a media file as what reads it: an image or a video; texts are as they are."""
    return given if isinstance(given, TextInput) else given.read_as(modality)


def clusters(examples: Sequence[Example]) -> list[int]:
    """Return a number for each example [n]; those of equal inputs or equal group have one number.

    Inputs and groups chain: if an input is in two groups, these are one cluster.
    """
    inputs: dict[object, int] = {}
    numbers = [inputs.setdefault(example.inputs, len(inputs)) for example in examples]
    groups: dict[str, int] = {}
    edges = [
        (number, len(inputs) + groups.setdefault(example.group, len(groups)))
        for number, example in zip(numbers, examples, strict=True)
        if example.group is not None
    ]
    if not edges:
        return numbers
    from scipy.sparse import coo_array  # noqa: PLC0415 (slow to import)
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    size = len(inputs) + len(groups)
    rows, columns = np.array(edges).T
    graph = coo_array((np.ones(len(edges), np.int8), (rows, columns)), shape=(size, size))
    _, found = connected_components(graph, directed=False)
    return [int(found[number]) for number in numbers]


def _bins(scores: NDArray[Any], count: int = 5) -> Ints:
    """Return classes of scores, of about equal size, so that folds get their share of each."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, count + 1)[1:-1]))
    return np.searchsorted(edges, scores, side="right").astype(np.int64)
