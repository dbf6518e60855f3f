"""What is no text is refused by name, not turned into one."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import DataError
from pipeline.reading.problems import BadRowError, checked_text
from pipeline.systems import data_config, load_dataset


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["John", "lives"], "the text is a list, not a text"),
        (("John", "lives"), "the text is a list, not a text"),
        ({"a": 1}, "the text is a mapping, not a text"),
        (None, "the text is missing"),
        (float("nan"), "the text is missing"),
        ("  ", "the text is empty"),
    ],
)
def test_what_is_no_text_is_named(value: Any, reason: str) -> None:
    with pytest.raises(BadRowError, match=reason):
        checked_text(value)


def test_numbers_are_texts() -> None:
    assert (checked_text(3), checked_text("a b")) == ("3", "a b")


def test_a_json_list_of_words_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = [{"text": f"good {i}", "label": i % 2} for i in range(20)]
    rows[4]["text"] = ["John", "lives"]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"the text is a list, not a text.*: line 5"):
        load_dataset(data_config({"train": str(file)}))
