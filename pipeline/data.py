"""Examples with targets, from local files or `datasets` folders: `DataConfig` -> `Dataset`.

Targets live here and never in a cache: any file whose sentences are in the cache can be trained
on. Loading costs one pass over the files and about 1 KB of memory an example.
"""

from dataclasses import dataclass

from pipeline.inputs import TextInput
from pipeline.reading.config import DataConfig
from pipeline.reading.examples import Example, label_names, read_examples
from pipeline.reading.sources import read_sources
from pipeline.reading.splits import assign_splits
from pipeline.reading.tables import DataError

__all__ = ["DataConfig", "DataError", "Dataset", "Example", "load_dataset"]


@dataclass(frozen=True)
class Dataset:
    """The examples of each split; `labels` are the class names, None for regression."""

    splits: dict[str, list[Example]]
    labels: tuple[str, ...] | None
    config: DataConfig

    @property
    def kind(self) -> str:
        """The family of the task: "classification" or "regression"."""
        return self.config.kind

    @property
    def segments(self) -> int:
        """Inputs of one example: 2 for pairs encoded separately, else 1."""
        return next((len(rows[0].inputs) for rows in self.splits.values() if rows), 1)

    def examples(self, split: str) -> list[Example]:
        """Return the examples of `split`.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        if not self.splits.get(split):
            known = ", ".join(f"{name} ({len(rows)})" for name, rows in self.splits.items())
            raise DataError(f"there are no examples in the split {split!r}; there are: {known}")
        return self.splits[split]

    def inputs(self) -> list[tuple[str, TextInput]]:
        """Every input of every split with its identifier: "train/12", pairs "train/12#a", "#b"."""
        rows: list[tuple[str, TextInput]] = []
        for examples in self.splits.values():
            for example in examples:
                if len(example.inputs) == 1:
                    rows.append((example.id, example.inputs[0]))
                else:
                    rows += [
                        (f"{example.id}#{m}", x) for m, x in zip("ab", example.inputs, strict=True)
                    ]
        return rows


def load_dataset(config: DataConfig) -> Dataset:
    """Read, label and split the examples `config` describes.

    Raises:
        DataError: a file is missing or unreadable, a column is absent, or rows are unusable (the
            message names the file and the lines).
    """
    sources = read_sources(config)
    labels = label_names(sources["train"], config)
    rows = {
        name: read_examples(source, name, labels, config, may_hide=name.startswith("test"))
        for name, source in sources.items()
    }
    splits = assign_splits(rows, config)
    if config.fit_on_dev:
        splits["train"] = splits["train"] + splits.pop("dev", [])
    return Dataset(splits=splits, labels=labels, config=config)
