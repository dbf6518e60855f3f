"""Extraction end to end: what is cached is what the backbone gives, once, resumable, checked."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SENTENCES, save_tiny

from cache import ActivationOverflow, Cache, FingerprintMismatch
from pipeline.backbones import NotFrozen, TextBackbone, load_backbone
from pipeline.extract import ExtractConfig, extract, extract_inputs
from pipeline.extraction import disk, fill
from pipeline.extraction.disk import NotEnoughDisk, written_bytes
from pipeline.extraction.fill import ExtractionInterrupted, shard_batches
from pipeline.extraction.report import Progress
from pipeline.extraction.table import InputError, build_table
from pipeline.inputs import TextInput

ROWS = [(f"row/{i}", TextInput(f"{text} {tail}".strip())) for i, (text, tail) in enumerate(
    [(text, tail) for tail in ("", "a cat", "a film", "ran on") for text in SENTENCES]
)]  # fmt: skip
DUPLICATES = [("again/0", ROWS[3][1]), ("again/1", ROWS[0][1])]
SMALL = {"block_tokens": 24, "batch_bound": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
def backbone(folder: Path) -> TextBackbone:
    return load_backbone(str(folder))


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every block a shard of its own, so that a tiny cache has many."""
    from cache import CacheWriter, plan_layout
    from pipeline.extraction import table

    create = CacheWriter.create
    monkeypatch.setattr(
        fill.CacheWriter, "create", lambda *a, **k: create(*a, **k, blocks_per_shard=1)
    )
    monkeypatch.setattr(table, "plan_layout", lambda **k: plan_layout(**k, blocks_per_shard=1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_cached_states_are_the_live_ones(
    backbone: TextBackbone, tmp_path: Path, dtype: str
) -> None:
    report = extract_inputs(backbone, ROWS, tmp_path / "cache", store_dtype=dtype, **SMALL)
    cache = Cache.open(tmp_path / "cache")
    assert [tap.name for tap in cache.taps] == list(backbone.tap_modules)
    samples = cache.find(
        np.frombuffer(b"".join(x.key() for _, x in ROWS), np.uint8).reshape(-1, 16)
    )
    assert (samples >= 0).all()
    exact = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-5}[dtype]
    for (_, item), sample in zip(ROWS, samples, strict=True):
        live = backbone.forward(backbone.encode([item]))
        read = cache.read(np.array([sample]))
        for tap, state in live.items():
            torch.testing.assert_close(read[tap].float(), state, atol=exact, rtol=exact)
    assert (report.samples, report.rows) == (len(ROWS), len(ROWS))
    assert report.bytes == written_bytes(tmp_path / "cache")
    assert cache.fingerprint.digest == report.fingerprint


def test_duplicates_are_computed_once(backbone: TextBackbone, tmp_path: Path) -> None:
    seen = count_inputs(backbone)
    report = extract_inputs(backbone, ROWS + DUPLICATES, tmp_path / "cache", **SMALL)
    assert sum(seen) == report.samples == len(ROWS)
    cache = Cache.open(tmp_path / "cache")
    rows = list(cache.row_ids)
    assert rows[-2:] == ["again/0", "again/1"]
    assert cache.row_to_sample[-2:].tolist() == cache.row_to_sample[[3, 0]].tolist()


def count_inputs(backbone: TextBackbone, stop_after: int | None = None) -> list[int]:
    """Count the inputs of each forward pass; raise Ctrl-C in the pass after `stop_after`."""
    seen: list[int] = []
    forward = backbone.forward

    def counted(encoded, dtype=None):
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(len(encoded))
        return forward(encoded, dtype)

    backbone.forward = counted
    return seen


@pytest.mark.usefixtures("many_shards")
def test_an_interrupted_run_goes_on_and_ends_the_same(folder: Path, tmp_path: Path) -> None:
    whole = extract_inputs(load_backbone(str(folder)), ROWS, tmp_path / "whole", **SMALL)
    assert whole.shards > 5
    stopped = load_backbone(str(folder))
    count_inputs(stopped, stop_after=4)
    with pytest.raises(ExtractionInterrupted, match="Run the same command again"):
        extract_inputs(stopped, ROWS, tmp_path / "parts", **SMALL)
    rest = extract_inputs(load_backbone(str(folder)), ROWS, tmp_path / "parts", **SMALL)
    assert 0 < rest.shards_written < whole.shards
    for path in sorted((tmp_path / "whole").rglob("*")):
        if path.is_file():
            twin = tmp_path / "parts" / path.relative_to(tmp_path / "whole")
            assert twin.read_bytes() == path.read_bytes()


def test_a_finished_cache_is_left_alone(backbone: TextBackbone, tmp_path: Path) -> None:
    extract_inputs(backbone, ROWS, tmp_path / "cache", **SMALL)
    seen = count_inputs(backbone)
    report = extract_inputs(backbone, ROWS, tmp_path / "cache", **SMALL)
    assert (seen, report.shards_written, report.tokens_per_second) == ([], 0, 0.0)


def test_another_backbone_is_refused_with_the_difference(
    folder: Path, backbone: TextBackbone, tmp_path: Path
) -> None:
    extract_inputs(backbone, ROWS, tmp_path / "cache", **SMALL)
    other = load_backbone(str(save_tiny("bert", tmp_path / "other", seed=1)))
    with pytest.raises(FingerprintMismatch, match=r"weights\.sha256"):
        extract_inputs(other, ROWS, tmp_path / "cache", **SMALL)
    shorter = load_backbone(str(folder), max_length=9)
    with pytest.raises(FingerprintMismatch, match=r"preprocessing\.max_length"):
        extract_inputs(shorter, ROWS, tmp_path / "cache", **SMALL)


def test_truncation_is_counted_with_examples(folder: Path, tmp_path: Path) -> None:
    short = load_backbone(str(folder), max_length=9)
    report = extract_inputs(short, ROWS, tmp_path / "cache", **SMALL)
    assert report.truncated == sum(len(x.text.split()) > 7 for _, x in ROWS) > 0
    assert "were cut to 9 tokens: row/2" in report.render()
    assert report.to_dict()["truncated"] == report.truncated


def test_empty_texts_are_named_where_they_have_no_token(tmp_path: Path) -> None:
    bare = load_backbone(str(save_tiny("gpt2", tmp_path / "gpt2")))
    rows = [("a", TextInput("cat")), ("b", TextInput("")), ("c", TextInput(" "))]
    with pytest.raises(InputError, match=r"2 input\(s\) have no token: b, c"):
        build_table(bare, rows)
    with pytest.raises(InputError, match="no inputs"):
        build_table(bare, [])


def test_empty_texts_are_fine_where_the_tokenizer_adds_tokens(backbone: TextBackbone) -> None:
    assert build_table(backbone, [("a", TextInput(""))]).encoded.lengths.tolist() == [2]


def test_overflow_names_the_tap_the_row_and_the_way_out(tmp_path: Path) -> None:
    backbone = load_backbone(str(save_tiny("llama", tmp_path / "llama")))
    backbone.model.norm.weight.mul_(1e6)
    with pytest.raises(ActivationOverflow, match=r"final_norm.*row/.*overflows.*bfloat16"):
        extract_inputs(backbone, ROWS, tmp_path / "cache", **SMALL)


def test_a_backbone_in_training_mode_is_refused_before_anything_is_written(
    backbone: TextBackbone, tmp_path: Path
) -> None:
    backbone.model.train()
    with pytest.raises(NotFrozen):
        extract_inputs(backbone, ROWS, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_refuses_unless_forced(
    backbone: TextBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_needed = extract_inputs(backbone, ROWS, tmp_path / "cache", **SMALL).bytes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=bytes_needed - 1))
    with pytest.raises(NotEnoughDisk, match=f"needs {bytes_needed:,} more bytes"):
        extract_inputs(backbone, ROWS, tmp_path / "deep" / "other", **SMALL)
    assert not (tmp_path / "deep").exists()
    extract_inputs(backbone, ROWS, tmp_path / "cache", **SMALL)  # already written: fits
    extract_inputs(backbone, ROWS, tmp_path / "deep" / "other", force=True, **SMALL)


def test_progress_counts_every_token_once(backbone: TextBackbone, tmp_path: Path) -> None:
    steps: list[Progress] = []
    report = extract_inputs(backbone, ROWS, tmp_path / "cache", progress=steps.append, **SMALL)
    assert (steps[-1].tokens, steps[-1].total_tokens) == (report.tokens, report.tokens)
    assert [step.tokens for step in steps] == sorted({step.tokens for step in steps})
    assert steps[-1].eta == 0
    assert all(step.rate > 0 for step in steps)


def test_the_batches_for_measurement_are_the_ones_extracted(
    backbone: TextBackbone, tmp_path: Path
) -> None:
    table = build_table(backbone, ROWS)
    layout = table.layout(backbone, dtype="float16", seed=0, block_tokens=24)
    sizes = [len(batch) for _, batch in shard_batches(backbone, layout, table, 64)]
    seen = count_inputs(backbone)
    extract_inputs(backbone, ROWS, tmp_path / "cache", **SMALL)
    assert seen == sizes


def test_extract_reads_the_data_a_config_names(folder: Path, tmp_path: Path) -> None:
    lines = [f"{item.text}\t{i % 2}" for i, (_, item) in enumerate(ROWS)]
    (tmp_path / "data.tsv").write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    config = ExtractConfig.build(
        {
            "backbone": str(folder),
            "out": tmp_path / "cache",
            "data": {"train": tmp_path / "data.tsv"},
            "taps": ["encoder.layer.*"],
            "batch_tokens": 64,
        }
    )
    report = extract(config)
    assert report.taps == ("encoder.layer.00", "encoder.layer.01")
    assert Cache.open(tmp_path / "cache").n_samples == len(ROWS)
