"""Pooling at extraction: the cache holds what pooling the whole cache afterwards would give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SENTENCES, save_tiny, tiny_model, tiny_tokenizer

from cache import Cache, FingerprintMismatch
from pipeline.backbones import BackboneError, ImageBackbone, TextBackbone
from pipeline.backbones.pooled_taps import pooled_taps, recorded_pool
from pipeline.backbones.pooling import check_pool, pool_states, pooled_shape
from pipeline.backbones.preprocessing import plain_transform
from pipeline.backbones.video import VideoBackbone
from pipeline.config import ConfigError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.extract import ExtractConfig, extract, extract_inputs
from pipeline.extraction.disk import written_bytes
from pipeline.extraction.table import build_table
from pipeline.inputs import TextInput
from pipeline.plan import PlanConfig, plan
from pipeline.planning.budget import alternatives
from pipeline.train import train, train_config

TEXTS = [(f"r{i}", TextInput(text)) for i, text in enumerate(SENTENCES)]


class Pyramid(torch.nn.Module):
    """Two stages of maps: the least that has cells."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.stages = torch.nn.ModuleList(
            [torch.nn.Conv2d(3, 4, 4, 4), torch.nn.Conv2d(4, 6, 2, 2)]
        )
        self.config = type("C", (), {"model_type": "pyramid", "depths": [1, 1]})()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            pixel_values = torch.relu(stage(pixel_values))
        return pixel_values


def pyramid(kind: type[ImageBackbone] = ImageBackbone, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Pyramid().eval().requires_grad_(False)
    return kind(model, plain_transform(32, (0.5,) * 3, (0.5,) * 3), name="pyramid", **options)


def texts(**options: Any) -> TextBackbone:
    return TextBackbone(tiny_model("bert"), tiny_tokenizer(), name="tiny", **options)


def reference(rows: torch.Tensor, pool: str) -> torch.Tensor:
    """Pool the rows [L, D] of one sample, written down once more."""
    ways = {
        "mean": lambda x: x.sum(0) / len(x),
        "std": lambda x: x.std(0, correction=0),
        "max": lambda x: x.max(0).values,
        "first": lambda x: x[0],
        "last": lambda x: x[-1],
    }
    return torch.cat([ways[part](rows) for part in pool.split("+")])


@settings(deadline=None, max_examples=40)
@given(
    pool=st.sampled_from(["mean", "std", "max", "first", "last", "first+mean+std", "max+last"]),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    left=st.booleans(),
    half=st.booleans(),
)
def test_padded_tokens_are_pooled_as_the_tokens_alone(
    pool: str, lengths: list[int], left: bool, half: bool
) -> None:
    dtype = torch.float16 if half else torch.float32
    states = torch.randn(len(lengths), max(lengths), 3).to(dtype)
    steps = torch.arange(max(lengths))
    mask = torch.stack([steps >= max(lengths) - n if left else steps < n for n in lengths])
    states[~mask] = torch.nan  # nothing of the padding may leak
    found = pool_states(states, pool, mask)
    assert found.dtype == torch.float32
    for row, valid, value in zip(states, mask, found, strict=True):
        torch.testing.assert_close(value, reference(row[valid].float(), pool))
    assert tuple(found.shape[1:]) == pooled_shape(pool, (max(lengths), 3))
    if len(set(lengths)) == 1:
        torch.testing.assert_close(pool_states(states, pool), found)


@settings(deadline=None, max_examples=40)
@given(cells=st.integers(1, 9), height=st.integers(1, 9), width=st.integers(1, 9))
def test_cells_are_the_means_of_an_even_grid(cells: int, height: int, width: int) -> None:
    state = torch.randn(2, 3, height, width)
    found = pool_states(state, f"cells={cells}")
    assert tuple(found.shape[1:]) == pooled_shape(f"cells={cells}", (3, height, width))
    rows, columns = found.shape[2:]
    for i in range(rows):
        for j in range(columns):
            part = state[
                :, :,
                i * height // rows : -(-(i + 1) * height // rows),
                j * width // columns : -(-(j + 1) * width // columns),
            ]  # fmt: skip
            torch.testing.assert_close(found[:, :, i, j], part.mean((2, 3)))
    torch.testing.assert_close(pool_states(state, "mean"), state.mean((2, 3)))


@pytest.mark.parametrize("pool", ["mean", "first", "last", "max", "std+mean"])
def test_a_pooled_cache_of_texts_is_the_whole_one_pooled(tmp_path: Path, pool: str) -> None:
    for name in ("none", pool):
        extract_inputs(texts(pool=name), TEXTS, tmp_path / name, store_dtype="float32")
    whole, pooled = Cache.open(tmp_path / "none"), Cache.open(tmp_path / pool)
    assert [(tap.name, tap.kind, tap.shape) for tap in pooled.taps] == [
        (tap.name, "vector", (tap.shape[0] * len(pool.split("+")),)) for tap in whole.taps
    ]
    assert pooled.lengths == {}
    assert pooled.fingerprint.digest != whole.fingerprint.digest
    assert recorded_pool(pooled.fingerprint.mapping["taps"]) == pool
    assert "pool" not in str(whole.fingerprint.mapping)
    for _, text in TEXTS:
        key = np.frombuffer(text.key(), np.uint8).reshape(1, 16)
        tokens, vector = whole.read(whole.find(key)), pooled.read(pooled.find(key))
        for tap, state in tokens.items():
            torch.testing.assert_close(vector[tap][0], reference(state, pool), atol=1e-5, rtol=1e-5)


def test_a_token_of_its_own_has_no_spread() -> None:
    assert pool_states(torch.randn(2, 1, 3), "std").abs().max() == 0


@pytest.mark.parametrize("kind", [ImageBackbone, VideoBackbone])
@pytest.mark.parametrize("pool", ["cells=3", "cells=4", "mean", "max", "std", "max+mean"])
def test_maps_and_frames_are_pooled_picture_by_picture(
    kind: type[ImageBackbone], pool: str
) -> None:
    whole = pyramid(kind)
    pooled = whole.pooled(pool)
    pixels = {"pixel_values": torch.randn(3, 3, 32, 32)}
    states = whole.forward(None, prepared=pixels)
    for tap in pooled.taps:
        found = pooled.forward(None, prepared=pixels)[tap.name]
        assert tuple(found.shape[1:]) == tap.shape
        before = states[tap.name]
        sizes = [min(int(pool[-1]), n) for n in before.shape[2:]] if "=" in pool else []
        wanted = (
            F.adaptive_avg_pool2d(before, sizes)
            if sizes
            else torch.stack([reference(one.flatten(1).T, pool) for one in before])
        )
        torch.testing.assert_close(found, wanted)
    kinds = {"frames"} if kind is VideoBackbone else {"map" if "=" in pool else "vector"}
    assert {tap.kind for tap in pooled.taps} == kinds
    assert pooled.model is whole.model
    assert whole.pool == "none"


def test_strides_follow_the_cells() -> None:
    assert [tap.stride for tap in pyramid().taps] == [4, 8]
    assert [tap.stride for tap in pyramid(pool="cells=2").taps] == [16, 16]


@pytest.mark.parametrize(
    ("build", "pool", "message"),
    [
        (texts, "cells=7", "tokens have no cells"),
        (pyramid, "first", "maps have no first token"),
        (pyramid, "cells=8", "changes no tap"),
        (texts, "median", "is not one of none, mean"),
        (pyramid, "cells=0", "is not one of"),
        (pyramid, "cells=2+mean", "is not one of"),
        (pyramid, "mean+first", "maps have no first token: choose one of mean, std, max, cells=N"),
        (texts, "mean+", "is not one of"),
        (texts, "mean+max+mean", "names one twice"),
    ],
)
def test_a_pooling_that_does_not_fit_is_refused(build: Any, pool: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        build(pool=pool)


def test_vectors_are_left_alone_and_cannot_be_all() -> None:
    made = texts(pool="mean")
    with pytest.raises(BackboneError, match="changes no tap"):
        pooled_taps(made.taps, "mean")
    assert check_pool(" mean ") == "mean"
    vector = torch.randn(2, 3)
    assert pool_states(vector, "mean") is vector


def test_another_pooling_is_another_cache(tmp_path: Path) -> None:
    extract_inputs(texts(pool="mean"), TEXTS, tmp_path / "c")
    with pytest.raises(FingerprintMismatch, match="pool"):
        extract_inputs(texts(pool="max"), TEXTS, tmp_path / "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny("bert", tmp_path_factory.mktemp("bert"))
    rows = [f"{'good' if i % 2 else 'bad'} {t} {'a' * (i % 7)}\t{i % 2}"
            for i, t in enumerate(SENTENCES * 16)]  # fmt: skip
    (folder / "data.tsv").write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8")
    return folder


def options(folder: Path, out: Path, **more: Any) -> dict[str, Any]:
    data = {"train": folder / "data.tsv"}
    return {"backbone": str(folder), "out": out, "data": data, "pool": "mean", **more}


def test_the_whole_way_from_pooled_states(folder: Path, tmp_path: Path) -> None:
    priced = plan(PlanConfig.build(options(folder, tmp_path / "c", trial_seconds=0.01)))
    extract(ExtractConfig.build(options(folder, tmp_path / "c")))
    assert priced.total_bytes == written_bytes(tmp_path / "c")
    assert "pooled: mean" in priced.render()
    assert priced.side_seconds > 0
    settings = {
        "data": {"train": folder / "data.tsv"},
        "cache": tmp_path / "c",
        "out": tmp_path / "run",
        "epochs": 6,
        "side_width": 8,
        "lr": 1e-2,
        "device": "cpu",
    }
    with pytest.raises(ConfigError, match="one vector an input"):
        train(train_config(settings | {"token_drop": 0.1, "out": tmp_path / "no"}))
    train(train_config(settings))
    found = evaluate(EvaluateConfig(run=tmp_path / "run", split="test"))
    assert found.to_dict()["metrics"]["accuracy"]["value"] > 0.8


def test_a_plan_names_the_poolings_that_fit_its_budget(folder: Path, tmp_path: Path) -> None:
    config = PlanConfig.build(options(folder, tmp_path / "c", pool="none", budget="1B"))
    found = {each.options: each for each in plan(config).alternatives}
    pooled = plan(PlanConfig.build(options(folder, tmp_path / "c")))
    assert found["--pool mean",].total_bytes == pooled.total_bytes
    assert ("--pool cells=7",) not in found


def test_a_plan_offers_coarser_maps(tmp_path: Path) -> None:
    from PIL import Image

    from pipeline.inputs import ImageInput

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    backbone = pyramid()
    table = build_table(backbone, [("train/0", ImageInput(tmp_path / "a.png"))])
    config = PlanConfig(backbone="x", data={"train": tmp_path / "c.csv"})
    found = {e.options: e.total_bytes for e in alternatives(config, backbone, table, 1)}
    layout = table.layout(backbone.pooled("cells=7"), dtype="float16", seed=0, block_tokens=640)
    assert found["--pool cells=7",] == layout.total_bytes
    assert ("--pool cells=14",) not in found
    assert ("--pool mean",) in found
