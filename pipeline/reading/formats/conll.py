"""CoNLL files: a word a line with its tag in the last column, a blank line between sentences.

Columns are separated by tabs, or by spaces where a line has no tab. Lines of `-DOCSTART-` are
passed over, and so are comments before a sentence (`# id ...`) where columns are separated by tabs.
A file of one column holds words whose tags are hidden. Cost: one pass, about 0.2 KB a word.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from pipeline.data import EncodingErrors
from pipeline.errors import DataError
from pipeline.reading.tables import Table, undecodable

DOCUMENT = "-DOCSTART-"
OTHERS = (".conllu", ".conllup")
"""Suffixes of formats that have their words and tags in columns of their own."""

Line = tuple[int, list[str]]
"""Its number, and its fields."""


def read_conll(path: Path, errors: EncodingErrors = "strict") -> Table:
    """Return the sentences as rows of words and tags, each numbered by its first line.

    Raises:
        DataError: the file is missing, empty, not UTF-8, CoNLL-U, or some of its lines have no tag.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.suffix.lower() in OTHERS:
        raise DataError(
            f"{path} is CoNLL-U, whose words and tags stand in columns of their own; write it as a "
            "word, a tab and its tag a line, or as JSON lines of {tokens, tags}"
        )
    try:
        sentences = list(_sentences(path.read_text(encoding="utf-8-sig", errors=errors)))
    except UnicodeDecodeError as error:
        raise undecodable(path, error) from error
    if not sentences:
        raise DataError(f"{path} holds no sentence")
    lines = [line for sentence in sentences for line in sentence]
    words = [[fields[0] for _, fields in sentence] for sentence in sentences]
    numbers = [sentence[0][0] for sentence in sentences]
    if all(len(fields) == 1 for _, fields in lines):
        return Table(
            source=str(path), columns=("tokens",), rows=[(row,) for row in words], numbers=numbers
        )
    for number, fields in lines:
        if len(fields) == 1:
            raise DataError(
                f"{path} line {number} has no tag: {fields[0][:60]!r}; a line is a word, a tab "
                "(or spaces) and its tag, and a blank line ends a sentence"
            )
    tags = [[fields[-1] for _, fields in sentence] for sentence in sentences]
    rows: list[tuple[object, ...]] = list(zip(words, tags, strict=True))
    return Table(source=str(path), columns=("tokens", "tags"), rows=rows, numbers=numbers)


def _sentences(text: str) -> Iterator[list[Line]]:
    """Yield the lines of each sentence."""
    lines = ((number, _fields(line)) for number, line in enumerate(text.split("\n"), start=1))
    for blank, run in groupby(lines, key=lambda line: not line[1] or line[1][0] == DOCUMENT):
        if blank:
            continue
        found = list(run)
        while found and found[0][1][0].startswith("# "):  # of lines with a tab only
            found.pop(0)
        if found:
            yield found


def _fields(line: str) -> list[str]:
    if not line.strip():
        return []
    parts = line.split("\t") if "\t" in line else line.split()
    return [part.strip() for part in parts]
