"""Models trained on int8 caches: live states are rounded as the cached ones were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from towerkit import make_towers

from pipeline.fused.loading import load_fused
from pipeline.fused.write import export_model


@pytest.mark.parametrize(
    ("pool", "forms"), [("none", ("torch_export",)), ("mean", ())], ids=["tokens", "pooled"]
)
def test_cached_live_and_fused_agree(
    make: Callable[..., Any], tmp_path: Path, pool: str, forms: tuple[Any, ...]
) -> None:
    made = make(store="int8", pool=pool)
    report = export_model(made.job(), tmp_path / "out", forms=forms)
    assert report.parity.types["stored"] == "int8"
    assert report.parity.worst < 2e-3
    cached = load_fused(tmp_path / "out").tower("text").cached
    for number, tap in enumerate(cached.taps):
        assert torch.equal(cached.get_buffer(f"rms_{number}"), made.cache.rms[tap])


@pytest.mark.parametrize(
    ("text", "media", "pools", "clips"),
    [
        ("clip", "clip", ("none", "none"), True),
        ("bert", "resnet", ("mean", "cells=2"), False),
    ],
    ids=["grids", "maps"],
)
def test_towers_over_int8_states(
    tmp_path: Path, text: str, media: str, pools: tuple[str, str], clips: bool
) -> None:
    made = make_towers(tmp_path, text, media, store="int8", pools=pools, clips=clips)
    report = export_model(made.job(), tmp_path / "out")
    assert report.parity.worst < 2e-3
    assert [row.changed for row in report.parity.rows] == [0, 0, 0, 0]
    cached = load_fused(tmp_path / "out").tower("media").cached
    assert torch.equal(cached.rms_0, made.setup.caches["media"].rms[cached.taps[0]])


def test_each_tap_is_rounded_as_it_was_stored(make: Callable[..., Any], tmp_path: Path) -> None:
    types = {"embeddings": "bfloat16", "encoder.layer.00": "int8", "encoder.layer.01": "float16"}
    made = make(store=types)
    assert list(made.setup.taps["text"].names) == list(types)
    report = export_model(made.job(), tmp_path / "out", forms=("torch_export",))
    assert report.parity.types["stored"] in ("bfloat16", "int8")
    assert report.parity.worst < 2e-3
    fused = load_fused(tmp_path / "out")
    states = fused.tower("text").cached
    assert states.types == types
    assert torch.equal(states.rms_1, made.cache.rms["encoder.layer.00"])
    assert {name for name, _ in states.named_buffers()} == {"rms_1"}
    inputs = fused.tokenize(["the cat sat on the mat"])
    rounded = fused(**inputs).logits
    for tap in types:
        states.types = types | {tap: "float32"}
        assert not torch.equal(fused(**inputs).logits, rounded)


def test_without_its_rounding_the_model_would_be_another(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    made = make(store="int8")
    export_model(made.job(), tmp_path / "out")
    fused = load_fused(tmp_path / "out")
    inputs = fused.tokenize(["the cat sat on the mat"])
    rounded = fused(**inputs).logits
    cached = fused.tower("text").cached
    cached.types = dict.fromkeys(cached.types, "float32")
    assert not torch.allclose(fused(**inputs).logits, rounded, atol=1e-4)
