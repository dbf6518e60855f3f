"""Labelled texts, from local files or `datasets` folders: `TextData` -> `Dataset`.

Cost: one pass over the files and about 1 KB of memory an example.
"""

from pipeline.data import Dataset, Labelled
from pipeline.reading.config import TextData
from pipeline.reading.examples import label_names, read_examples
from pipeline.reading.sources import read_sources
from pipeline.reading.splits import assign_splits

__all__ = ["load_texts"]

TOWERS = (("text",), ("first", "second"))
"""Towers of one text (or of a pair that the tokenizer joins), and of a pair encoded separately."""


def load_texts(config: TextData) -> Dataset:
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
    splits = assign_splits(rows, config, config.preset.rule if config.preset else None)
    if config.fit_on_dev:
        splits["train"] = splits["train"] + splits.pop("dev", [])
    towers = TOWERS[len(splits["train"][0].inputs) - 1]
    return Dataset(
        splits={name: Labelled(examples, towers) for name, examples in splits.items()},
        labels=labels,
        config=config,
    )
