"""A storage type for each tap: patterns of a command, bytes of the cache, training from it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import SENTENCES, save_tiny, tiny_model, tiny_tokenizer

import cli
from cache import Cache
from pipeline.backbones import TextBackbone
from pipeline.config import ConfigError
from pipeline.extract import ExtractConfig, extract, extract_inputs
from pipeline.extraction.disk import written_bytes
from pipeline.extraction.storage import changed_types, stored_types
from pipeline.extraction.table import build_table
from pipeline.inputs import TextInput
from pipeline.plan import plan
from pipeline.planning.budget import alternatives
from pipeline.planning.config import PlanConfig
from pipeline.train import train, train_config

TAPS = ("embeddings", "encoder.layer.00", "encoder.layer.01")
ROWS = [(f"r{i}", TextInput(f"{text} {'a ' * i}")) for i, text in enumerate(SENTENCES * 4)]
TYPES: Any = dict(zip(TAPS, ("float16", "int8", "bfloat16"), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny("bert", tmp_path_factory.mktemp("bert"))
    words = ("cat", "dog", "mat", "tree", "sat", "ran", "film", "on")
    lines = [f"{a} {b}\t{i % 2}" for i, (a, b) in enumerate(pairwise(words))]
    lines += [f"the {line}" for line in lines] + [f"a {line}" for line in lines]
    (folder / "data.tsv").write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    return folder


def backbone() -> TextBackbone:
    return TextBackbone(tiny_model("bert"), tiny_tokenizer(), name="tiny")


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.commands, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_patterns_name_types_and_the_last_one_counts() -> None:
    texts = ["encoder.*=int8", "*[-1] = bfloat16"]
    assert stored_types(TAPS, "float16", texts) == TYPES
    assert changed_types(TAPS, texts[1:]) == {TAPS[2]: "bfloat16"}
    with pytest.raises(ConfigError, match=r"no tap matches 'decoder\.\*'.*PATTERN=TYPE.*'x=int4'"):
        changed_types(TAPS, ["decoder.*=int8", "x=int4"])
    for wrong in ("int8", "=int8", "encoder.*=", "encoder.*=double"):
        with pytest.raises(ConfigError, match="PATTERN=TYPE"):
            ExtractConfig.build(
                {"backbone": "x", "out": "c", "data": {"train": "t"}, "store_dtype_of": [wrong]}
            )


def test_each_tap_holds_what_a_cache_of_its_type_does(tmp_path: Path) -> None:
    report = extract_inputs(backbone(), ROWS, tmp_path / "c", store_dtype=TYPES, block_tokens=24)
    table = build_table(backbone(), ROWS)
    planned = table.layout(backbone(), dtype=TYPES, seed=0, block_tokens=24)
    assert report.bytes == written_bytes(tmp_path / "c") == planned.total_bytes
    cache = Cache.open(tmp_path / "c")
    assert cache.fingerprint == planned.fingerprint
    assert cache.fingerprint.mapping["dtype"]["stored"] == TYPES
    for tap, dtype in TYPES.items():
        path = tmp_path / dtype
        extract_inputs(backbone(), ROWS, path, store_dtype=dtype, block_tokens=24)
        alone = Cache.open(path)
        samples = np.arange(cache.n_samples)
        assert torch.equal(cache.read(samples, [tap])[tap], alone.read(samples, [tap])[tap])


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    options: Any = {"store_dtype": TYPES, "block_tokens": 24}
    extract_inputs(backbone(), ROWS, tmp_path / "whole", **options)

    def stop(progress: Any) -> None:
        if progress.shard == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_inputs(backbone(), ROWS, tmp_path / "c", progress=stop, **options)
    extract_inputs(backbone(), ROWS, tmp_path / "c", **options)
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_the_command_line_extracts_plans_and_converts(folder: Path, tmp_path: Path) -> None:
    options = ["--train", folder / "data.tsv", "--store-dtype-of", "encoder.layer.00=int8"]
    options += ["--store-dtype-of", "*[-1]=bfloat16"]
    assert "float16 (1 taps), int8 (1 taps), bfloat16 (1 taps)" in run(
        "plan", folder, *options, "--trial-seconds", 0.01
    )
    run("extract", folder, tmp_path / "c", *options)
    assert dict(Cache.open(tmp_path / "c").geometry.types) == TYPES
    run("extract", folder, tmp_path / "f", *options[:2], "--store-dtype", "float32")
    change = ["--dtype", "float16", "--dtype-of", TAPS[1] + "=int8", "--dtype-of", "*[-1]=bfloat16"]
    run("cache", "convert", tmp_path / "f", tmp_path / "g", *change)
    assert contents(tmp_path / "g") == contents(tmp_path / "c")
    run("cache", "convert", tmp_path / "f", tmp_path / "h", "--dtype-of", "embeddings=int8")
    assert list(Cache.open(tmp_path / "h").geometry.types.values()) == [
        "int8",
        "float32",
        "float32",
    ]


def test_a_compressed_cache_is_extracted_priced_and_trained_from(
    folder: Path, tmp_path: Path
) -> None:
    data = ["--train", folder / "data.tsv", "--store-dtype-of", "encoder.layer.00=int8"]
    packed = [*data, "--compress", "zstd:4"]
    priced = plan(
        PlanConfig.build(
            {
                "backbone": str(folder),
                "data": {"train": folder / "data.tsv"},
                "store_dtype_of": ["encoder.layer.00=int8"],
                "compress": "zstd:4",
                "trial_seconds": 0.01,
            }
        )
    )
    assert "at most" in priced.render()
    assert "zstd:4" in priced.render()
    shown = run("extract", folder, tmp_path / "c", *packed)
    assert f"{written_bytes(tmp_path / 'c'):,} bytes" in shown
    assert written_bytes(tmp_path / "c") <= priced.total_bytes
    run("extract", folder, tmp_path / "plain", *data)
    run("cache", "convert", tmp_path / "plain", tmp_path / "d", "--compress", "zstd:4")
    assert contents(tmp_path / "c") == contents(tmp_path / "d")
    one, two = Cache.open(tmp_path / "c"), Cache.open(tmp_path / "plain")
    assert one.fingerprint == two.fingerprint
    samples = np.arange(one.n_samples)
    for tap, values in one.read(samples).items():
        assert torch.equal(values, two.read(samples, [tap])[tap])
    wrong = {"backbone": "x", "out": "c", "data": {"train": "t"}, "compress": "gzip"}
    with pytest.raises(ConfigError, match="zstd:LEVEL"):
        ExtractConfig.build(wrong)


def test_a_training_from_a_mix_is_one_from_its_numbers(folder: Path, tmp_path: Path) -> None:
    data = {"train": folder / "data.tsv"}
    types = ["embeddings=bfloat16", "encoder.layer.00=int8"]
    run("extract", folder, tmp_path / "c", "--train", data["train"], "--store-dtype-of", types[0])
    options = {"backbone": str(folder), "data": data, "store_dtype_of": types}
    extract(ExtractConfig.build(options | {"out": tmp_path / "mixed"}))
    run("cache", "convert", tmp_path / "mixed", tmp_path / "floats", "--dtype", "float32")
    weights = {}
    for name in ("mixed", "floats", "c"):
        options = {"cache": tmp_path / name, "data": data, "epochs": 2, "device": "cpu"}
        train(train_config(options | {"out": tmp_path / f"run-{name}"}))
        weights[name] = (tmp_path / f"run-{name}" / "model.safetensors").read_bytes()
    assert weights["mixed"] == weights["floats"] != weights["c"]


def test_alternatives_keep_the_mix() -> None:
    made = backbone()
    table = build_table(made, ROWS)
    config = PlanConfig.build(
        {
            "backbone": "x",
            "data": {"train": "c.csv"},
            "block_tokens": 24,
            "store_dtype_of": ["embeddings=int8"],
        }
    )
    found = alternatives(config, made, table, 1)
    assert not any("--store-dtype int8" in each.options for each in found)
    fewer = next(each for each in found if each.options and each.options[0].startswith("--taps"))
    kept = [option.removeprefix("--taps ") for option in fewer.options]
    types = {tap: "int8" if tap == "embeddings" else "float16" for tap in TAPS}
    layout = table.layout(made, dtype=types, seed=0, block_tokens=24, taps=kept)  # type: ignore[arg-type]
    assert fewer.total_bytes == layout.total_bytes
