"""MSR-VTT, split 1k-A: `MSRVTT_train.9k.csv`, `MSRVTT_data.json`, `MSRVTT_JSFUSION_test.csv`.

9,000 videos with every sentence for training, 1,000 with one sentence each for testing; videos
are `{video_id}.mp4`. A list of identifiers takes its sentences from `MSRVTT_data.json`; a file with
a `sentence` column has its own.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.reading.config import CaptionData
from pipeline.reading.files import read_json
from pipeline.reading.formats.rows import CaptionRow, Reading, Readings
from pipeline.reading.tables import Table, read_table

TRAIN, TEST, SENTENCES = "MSRVTT_train.9k.csv", "MSRVTT_JSFUSION_test.csv", "MSRVTT_data.json"


def read_msrvtt(folder: Path, config: CaptionData) -> Readings:
    """Return the rows of the folder by split: "train" and "test".

    Raises:
        DataError: a file is missing or lacks a field.
    """
    return {
        "train": read_clip_list(folder / TRAIN, config),
        "test": read_clip_list(folder / TEST, config),
    }


def read_clip_list(path: Path, config: CaptionData) -> Reading:
    """Read a file of videos, with the sentences in it or in `MSRVTT_data.json` beside it.

    Raises:
        DataError: a file is missing or lacks a field.
    """
    table = read_table(path, encoding_errors=config.encoding_errors)
    if table.find("video_id") is None:
        raise DataError(f"{path} has no column 'video_id'; it has {', '.join(table.columns)}")
    reading = Reading(str(path))
    reading.problems.add(
        f"not {len(table.columns)} fields", *(f"line {number}" for number in table.ragged)
    )
    if "sentence" in table.columns:
        _own_sentences(reading, table)
    else:
        _shared_sentences(reading, table, _sentences(path.parent / SENTENCES, config))
    return reading


def _own_sentences(reading: Reading, table: Table) -> None:
    keys = table.values("key") if "key" in table.columns else table.numbers
    seen: set[Any] = set()
    for number, key, clip, sentence in zip(
        table.numbers, keys, table.values("video_id"), table.values("sentence"), strict=True
    ):
        if key in seen:
            reading.problems.add("duplicate key", f"{key!r} (line {number})")
            continue
        seen.add(key)
        reading.rows.append(CaptionRow(str(clip), str(clip), sentence, f"line {number}"))


def _shared_sentences(reading: Reading, table: Table, sentences: dict[str, list[Any]]) -> None:
    seen: set[str] = set()
    for number, clip in zip(table.numbers, map(str, table.values("video_id")), strict=True):
        if clip in seen:
            reading.problems.add("duplicate id", f"{clip!r} (line {number})")
            continue
        seen.add(clip)
        if clip not in sentences:
            reading.problems.add(f"no sentence in {SENTENCES}", f"{clip!r} (line {number})")
        reading.rows += [
            CaptionRow(clip, clip, text, f"line {number}, sentence {order}")
            for order, text in enumerate(sentences.get(clip, ()), start=1)
        ]


def _sentences(path: Path, config: CaptionData) -> dict[str, list[Any]]:
    document = read_json(path, config.encoding_errors)
    records = document.get("sentences") if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise DataError(f'{path} has no list "sentences" of {{video_id, caption}}')
    found: dict[str, list[Any]] = defaultdict(list)
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not {"video_id", "caption"} <= record.keys():
            raise DataError(f"{path}: sentence {number} needs video_id and caption, not {record!r}")
        found[str(record["video_id"])].append(record["caption"])
    return dict(found)
