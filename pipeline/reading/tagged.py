"""Tagged words, from CoNLL files, JSON lines and Parquet of {tokens, tags}, or `datasets` folders.

Sentences are read, checked and split here; `windows.py` makes examples of them. Memory: about
0.3 KB a word.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from pipeline.data import DataConfig, Dataset, Example
from pipeline.errors import DataError
from pipeline.inputs import TextInput
from pipeline.reading.config import Column
from pipeline.reading.formats.conll import read_conll
from pipeline.reading.problems import BadRowError, Problems, settle
from pipeline.reading.splits import assign_splits
from pipeline.reading.tables import Table, is_datasets_folder, read_datasets_folder, read_table
from pipeline.reading.windows import tell_windows, windows_of

__all__ = ["OUTSIDE", "TagData", "has_entities", "load_tagged"]

TABLES = (".jsonl", ".json", ".ndjson", ".parquet")
TAGS = ("tags", "ner_tags", "pos_tags", "labels")
"""Column names of the tags, tried in this order where none is configured."""
OUTSIDE = "O"
SAME = {"validation": "dev", "valid": "dev", "all": "train"}
"""Name of a part of a `datasets` folder -> the split it is."""


class TagData(DataConfig):
    """Which tagged words, where they are, and how they are split."""

    task: Literal["tagging"] = "tagging"
    """tagging: a tag for each word (entities, parts of speech)."""
    train: Path
    """Training file: CoNLL (a word and its tag a line), JSON lines or Parquet of {tokens, tags}, or
    a folder of `datasets.save_to_disk`."""
    tokens_column: Column = "tokens"
    """Column of the list of words of a JSON lines, Parquet or `datasets` file."""
    tags_column: Column | None = None
    """Column of the list of tags; the default is the first of tags, ner_tags, pos_tags, labels."""
    tag_names: tuple[str, ...] | None = None
    """Tags in order, which numbers in a file mean; by default as the file says, or the training
    rows' tags, sorted."""
    scheme: Literal["auto", "iob2", "plain"] = "auto"
    """iob2: entities as B-, I- and O; plain: every tag stands for itself; auto takes iob2 where all
    tags are of that form."""
    max_words: int = Field(default=128, ge=1)
    """Words of an input, at most; a longer sentence is read in several windows."""
    overlap: int = Field(default=32, ge=0)
    """Words that two windows of a sentence share at least."""
    metrics: tuple[str, ...] | None = None
    """Metrics to report, the first one choosing the best epoch; by default entity_f1,
    entity_precision, entity_recall and token_accuracy, or token_accuracy and macro_f1 (plain)."""

    def contradictions(self) -> list[str]:
        """Return what of the windows, the tags and the shares does not go together."""
        problems = super().contradictions()
        if self.overlap >= self.max_words:
            problems.append(
                f"overlap must be less than max_words, not {self.overlap} of {self.max_words}"
            )
        if self.tag_names is not None and len(set(self.tag_names)) != len(self.tag_names):
            problems.append(f"tag_names has duplicates: {', '.join(self.tag_names)}")
        return problems


def has_entities(labels: Sequence[str], data: TagData) -> bool:
    """Whether these tags mark entities in IOB2, by the scheme or (auto) by their form."""
    if data.scheme == "auto":
        return OUTSIDE in labels and all(map(_formed, labels))
    return data.scheme == "iob2"


def load_tagged(config: TagData) -> Dataset:
    """Read, check and split the sentences `config` describes, and cut them into windows.

    Raises:
        DataError: a file is missing or unreadable, a column is absent, words and tags are not as
            many, or tags break the scheme (the message names the first few and counts all).
    """
    tables = _tables(config)
    names = config.tag_names or tables["train"].class_names.get(
        _tags_column(tables["train"], config) or ""
    )
    problems = {split: Problems(table.source) for split, table in tables.items()}
    rows = {
        split: _sentences(table, split, config, names, problems[split])
        for split, table in tables.items()
    }
    if config.bad_rows == "error" or not rows["train"]:  # before their lack makes other problems
        settle(problems.values(), "error")
    labels = names or _sorted_tags(row.tags for row in rows["train"])
    entities = has_entities(labels, config)
    numbered = {
        split: _numbered(split, found, labels, entities, problems[split])
        for split, found in rows.items()
    }
    dropped = settle(problems.values(), config.bad_rows)
    splits = assign_splits(numbered, config)
    if config.fit_on_dev:
        splits["train"] = splits["train"] + splits.pop("dev", [])
    size = config.max_words, config.overlap
    made = {name: windows_of(examples, *size) for name, examples in splits.items()}
    tell_windows(made, *size)
    return Dataset(splits=made, config=config, labels=labels, dropped=dropped)


class _Sentence(NamedTuple):
    """A row: words, tags by name, and its line."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    place: int


def _tables(config: TagData) -> dict[str, Table]:
    if not config.train.is_dir():
        tables = {"train": _table(config.train, config)}
    elif is_datasets_folder(config.train):
        found = read_datasets_folder(config.train)
        tables = {SAME.get(name, name): table for name, table in found.items()}
    else:
        raise DataError(
            f"the folder {config.train} is no `datasets.save_to_disk` data set; give a CoNLL, JSON "
            "lines or Parquet file"
        )
    if "train" not in tables:
        raise DataError(f"{config.train} holds no training rows; found: {', '.join(tables)}")
    for split, path in (("dev", config.dev), ("test", config.test)):
        if path is not None:
            tables[split] = _table(path, config)
    return tables


def _table(path: Path, config: TagData) -> Table:
    if path.suffix.lower() in TABLES:
        return read_table(path, encoding_errors=config.encoding_errors)
    return read_conll(path, config.encoding_errors)


def _tags_column(table: Table, config: TagData) -> str | None:
    names = TAGS if config.tags_column is None else (config.tags_column,)
    return next((found for name in names if (found := table.find(name)) is not None), None)


def _sentences(
    table: Table, split: str, config: TagData, names: Sequence[str] | None, problems: Problems
) -> list[_Sentence]:
    """Return the usable rows; in a test file all tags may be absent."""
    words = _column(table, table.find(config.tokens_column), "words", "tokens_column")
    column = _tags_column(table, config)
    may_hide = split == "test"
    if column is None and may_hide:
        tags: list[Any] = [None] * len(words)
    else:
        tags = _column(table, column, "tags", "tags_column")
    hidden = may_hide and all(each is None for each in tags)
    found = []
    for number, own, given in zip(table.numbers, words, tags, strict=True):
        try:
            checked = _words(own)
            found.append(
                _Sentence(checked, None if hidden else _tags(given, checked, names), number)
            )
        except BadRowError as reason:
            problems.add(str(reason), number)
    return found


def _column(table: Table, name: str | None, what: str, option: str) -> list[Any]:
    if name is None:
        raise DataError(
            f"{table.source} has no column of {what}; it has {', '.join(table.columns)}. Name it "
            f"with `{option}`; a line of a CoNLL file is a word, a tab (or spaces) and its tag"
        )
    return table.values(name)


def _words(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not all(isinstance(word, str) for word in given):
        raise BadRowError("the words are no list of texts")
    if not given:
        raise BadRowError("there is no word")
    if not all(word.strip() for word in given):
        raise BadRowError("a word is empty")
    return tuple(given)


def _tags(given: Any, words: Sequence[str], names: Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        raise BadRowError("the tags are missing")
    if not isinstance(given, list | tuple):
        raise BadRowError("the tags are no list")
    if len(given) != len(words):
        raise BadRowError("words and tags are not as many")
    return tuple(_tag(tag, names) for tag in given)


def _tag(tag: Any, names: Sequence[str] | None) -> str:
    if isinstance(tag, str) and tag.strip():
        return tag.strip()
    if isinstance(tag, int) and not isinstance(tag, bool):
        if names is None:
            raise BadRowError("tags are numbers: name them in order with `tag_names`")
        if not 0 <= tag < len(names):
            raise BadRowError(f"tag number {tag} is none of the {len(names)} named tags")
        return names[tag]
    raise BadRowError("a tag is missing")


def _sorted_tags(rows: Iterable[Sequence[str] | None]) -> tuple[str, ...]:
    found = {tag for tags in rows for tag in tags or ()}
    if len(found) < 2:
        raise DataError(
            f"the training rows show {len(found)} tag(s) ({', '.join(sorted(found))}); tagging "
            "needs at least two, or all of them named with `tag_names`"
        )
    return tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, tag[2:], tag)))


def _numbered(
    split: str, rows: Sequence[_Sentence], labels: Sequence[str], entities: bool, problems: Problems
) -> list[Example]:
    """Return the rows with numbers for tags; those that break the scheme are problems."""
    numbers = {tag: number for number, tag in enumerate(labels)}
    found: list[Example] = []
    for row in rows:
        tags = row.tags or ()
        if unknown := [tag for tag in tags if tag not in numbers]:
            problems.add(
                f"unknown tag {unknown[0]!r} (known: {', '.join(labels)}; name all of them with "
                "`tag_names`)",
                row.place,
            )
        elif entities and (reason := _breaks_iob2(tags)):
            problems.add(f"{reason}; correct it, or set `scheme: plain`", row.place)
        else:
            own = None if row.tags is None else tuple(numbers[tag] for tag in tags)
            inputs = (TextInput(" ".join(row.words)),)
            found.append(Example(f"{split}/{len(found)}", inputs, (row.words, own)))
    return found


def _formed(tag: str) -> bool:
    """Whether a tag is one of IOB2."""
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def _breaks_iob2(tags: Sequence[str]) -> str | None:
    """Return what is wrong with the tags of a sentence, None if nothing is."""
    before = OUTSIDE
    for tag in tags:
        if not _formed(tag):
            return f"{tag!r} is none of B-TYPE, I-TYPE and O"
        if tag.startswith("I-") and before[2:] != tag[2:]:
            return f"{tag} begins no entity in IOB2 (B- does)"
        before = tag
    return None
