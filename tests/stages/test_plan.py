"""A plan is exact in bytes and counts, writes nothing, and says why."""

import json
from pathlib import Path

import pytest
import torch
from tiny import SENTENCES, save_tiny

from pipeline import plan as module
from pipeline.extract import ExtractConfig, extract
from pipeline.extraction.disk import written_bytes
from pipeline.plan import Plan, PlanConfig, plan
from pipeline.planning.tier import DISK_BYTES_PER_SECOND, pick_tier

TEXTS = [f"{text} {tail}" for tail in ("a cat", "film", "film") for text in SENTENCES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny("electra", tmp_path_factory.mktemp("electra"))
    lines = [f"{text}\t{i % 2}" for i, text in enumerate(TEXTS)]
    (folder / "data.tsv").write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    return folder


def make(folder: Path, out: Path, **options: object) -> PlanConfig:
    return PlanConfig.build(
        {
            "backbone": str(folder),
            "out": out,
            "data": {"train": folder / "data.tsv"},
            "block_tokens": 24,
            "trial_seconds": 0.01,
            "side_width": 4,
            **options,
        }
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"store_dtype": "float32"},
        {"store_dtype_of": ["encoder.layer.*=int8", "*[-1]=bfloat16"]},
        {"taps": ["encoder.layer.*"], "max_length": 9, "seed": 3},
    ],
)
def test_the_bytes_are_those_of_the_finished_folder(
    folder: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    config = make(folder, tmp_path / "cache", **options)
    priced = plan(config)
    assert not (tmp_path / "cache").exists()
    report = extract(
        ExtractConfig(**{k: v for k, v in dict(config).items() if k in ExtractConfig.model_fields})
    )
    assert priced.total_bytes == written_bytes(tmp_path / "cache") == report.bytes
    assert sum(priced.taps.values()) < priced.total_bytes
    assert list(priced.taps) == list(report.taps)
    assert (priced.shards, priced.tokens) == (report.shards, report.tokens)
    assert (priced.rows, priced.samples) == (report.rows, report.samples)
    assert (priced.truncated, priced.truncation) == (report.truncated, report.truncation)
    assert plan(config).already_written == priced.total_bytes


def test_counts_times_and_text(folder: Path, tmp_path: Path) -> None:
    priced = plan(make(folder, tmp_path / "cache", max_length=9))
    assert (priced.rows, priced.samples, priced.duplicates) == (15, 10, 5)
    assert priced.truncated > 0
    assert priced.longest == 9
    assert 0 <= priced.padding < 1
    assert priced.extract_seconds == pytest.approx(priced.tokens / priced.tokens_per_second)
    assert priced.forward_seconds > priced.extract_seconds  # duplicates are computed each time
    assert priced.side_seconds > 0
    text = priced.render()
    for part in (f"{priced.total_bytes:,} bytes", "were cut to 9", "host memory", "5 duplicates"):
        assert part in text
    assert Plan(**json.loads(priced.model_dump_json())) == priced


def test_one_tap_has_no_side_network_to_measure(folder: Path, tmp_path: Path) -> None:
    assert plan(make(folder, tmp_path / "c", taps=["encoder.layer.01"])).side_seconds == 0


def test_the_break_even_follows_from_the_times(folder: Path, tmp_path: Path) -> None:
    priced = plan(make(folder, tmp_path / "cache"))
    gain = priced.forward_seconds - priced.read_seconds
    assert priced.break_even == pytest.approx(priced.extract_seconds / gain)
    slow = priced.model_copy(update={"break_even": None})
    assert "never" in slow.render()


def test_the_tier_follows_the_memory_and_says_so() -> None:
    mib = 2**20
    tier, reason, speed = pick_tier(50 * mib, 5, limit=50 * mib)
    assert (tier, speed > 0) == ("host memory", True)
    assert reason.startswith("50.0 MiB for 5 blocks fits in the limit of 50.0 MiB")
    tier, reason, speed = pick_tier(50 * mib, 5, limit=50 * mib - 1)
    assert (tier, speed) == ("disk", DISK_BYTES_PER_SECOND)
    assert "exceeds the limit" in reason
    assert "1 GB/s assumed" in reason
    tier, reason, speed = pick_tier(50 * mib, 5, limit=10 * mib, device_limit=10 * mib)
    assert tier == "disk"
    assert "exceeds the limit of 10.0 MiB on the device and" in reason
    room = {"limit": 50 * mib, "device_limit": 50 * mib}
    tier, reason, speed = pick_tier(50 * mib, 5, device=torch.device("cpu"), **room)
    assert (tier, speed > 0) == ("device memory", True)
    assert "fits in the limit of 50.0 MiB on the device" in reason


def test_a_disk_that_is_too_small_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 10)
    priced = plan(make(folder, tmp_path / "cache"))
    assert not priced.fits
    assert "DOES NOT FIT" in priced.render()


def test_an_extraction_config_is_enough(folder: Path, tmp_path: Path) -> None:
    config = make(folder, tmp_path / "cache")
    fields = {k: v for k, v in dict(config).items() if k in ExtractConfig.model_fields}
    assert plan(ExtractConfig(**fields)).total_bytes == plan(config).total_bytes
