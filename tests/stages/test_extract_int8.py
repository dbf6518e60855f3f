"""Extraction to int8: calibrated once before the first shard, planned to the byte, accurate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SENTENCES, tiny_model, tiny_tokenizer

from cache import Cache
from pipeline.backbones import TextBackbone
from pipeline.extract import extract_inputs
from pipeline.extraction import fill
from pipeline.extraction.disk import written_bytes
from pipeline.extraction.fill import ExtractionInterrupted
from pipeline.extraction.table import build_table
from pipeline.inputs import TextInput
from pipeline.planning.budget import alternatives
from pipeline.planning.config import PlanConfig

ROWS = [(f"r{i}", TextInput(f"{text} {'a ' * i}")) for i, text in enumerate(SENTENCES * 4)]


def backbone() -> TextBackbone:
    return TextBackbone(tiny_model("bert"), tiny_tokenizer(), name="tiny")


def run(path: Path, **options: Any) -> Any:
    made = backbone()
    return extract_inputs(made, ROWS, path, store_dtype="int8", block_tokens=24, **options)


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_the_cache_is_within_a_percent_and_half_as_large(tmp_path: Path) -> None:
    report = run(tmp_path / "c")
    table, made = build_table(backbone(), ROWS), backbone()
    kinds = ("int8", "float16")
    priced = {
        kind: table.layout(made, dtype=kind, seed=0, block_tokens=24).total_bytes for kind in kinds
    }
    assert report.bytes == written_bytes(tmp_path / "c") == priced["int8"]
    config = PlanConfig(backbone="x", data={"train": "c.csv"}, block_tokens=24)
    found = {each.options: each.total_bytes for each in alternatives(config, made, table, 1)}
    assert found["--store-dtype int8",] == priced["int8"] < priced["float16"]
    cache = Cache.open(tmp_path / "c")
    for _, text in ROWS[:6]:
        sample = cache.find(np.frombuffer(text.key(), np.uint8).reshape(1, 16))
        live = made.forward(made.encode([text]))
        for tap, state in cache.read(sample).items():
            rms = cache.rms[tap]
            assert ((state - live[tap]) / rms).norm() < 0.01 * (live[tap] / rms).norm()


def test_a_stopped_run_goes_on_with_the_sizes_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole")

    def stop(progress: Any) -> None:
        if progress.shard == 1:
            raise KeyboardInterrupt

    with pytest.raises(ExtractionInterrupted):
        run(tmp_path / "c", progress=stop)

    def never(*_: Any) -> Any:
        raise AssertionError("calibrated twice")

    monkeypatch.setattr(fill, "calibrate", never)
    run(tmp_path / "c")
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_a_run_stopped_before_its_metadata_calibrates_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    calibrate = fill.calibrate

    def counted(*arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return calibrate(*arguments)

    monkeypatch.setattr(fill, "calibrate", counted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c")
    run(tmp_path / "c")
    assert len(calls) == 2
    assert Cache.open(tmp_path / "c").n_samples == len(ROWS)
