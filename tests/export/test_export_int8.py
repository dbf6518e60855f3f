"""Models trained on int8 caches: live states are rounded as the cached ones were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from towerkit import make_towers

from pipeline.fused.loading import load_fused, load_retrieval
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
    fused, _ = load_fused(tmp_path / "out")
    for number, tap in enumerate(made.trained.taps):
        assert torch.equal(fused.cached_states.get_buffer(f"rms_{number}"), made.cache.rms[tap])


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
    model = load_retrieval(tmp_path / "out")
    first = model.config.media_tower["taps"][0]
    assert torch.equal(model.media_states.rms_0, made.media_cache.rms[first])


def test_each_tap_is_rounded_as_it_was_stored(make: Callable[..., Any], tmp_path: Path) -> None:
    types = {"embeddings": "bfloat16", "encoder.layer.00": "int8", "encoder.layer.01": "float16"}
    made = make(store=types)
    assert list(made.trained.taps) == list(types)
    report = export_model(made.job(), tmp_path / "out", forms=("torch_export",))
    assert report.parity.types["stored"] in ("bfloat16", "int8")
    assert report.parity.worst < 2e-3
    fused, tokenizer = load_fused(tmp_path / "out")
    states = fused.cached_states
    assert states.types == types
    assert torch.equal(states.rms_1, made.cache.rms["encoder.layer.00"])
    assert {name for name, _ in states.named_buffers()} == {"rms_1"}
    inputs = tokenizer(["the cat sat on the mat"], return_tensors="pt")
    rounded = fused(**inputs).logits
    for tap in types:
        states.types = types | {tap: "float32"}
        assert not torch.equal(fused(**inputs).logits, rounded)


def test_without_its_rounding_the_model_would_be_another(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    made = make(store="int8")
    export_model(made.job(), tmp_path / "out")
    fused, tokenizer = load_fused(tmp_path / "out")
    inputs = tokenizer(["the cat sat on the mat"], return_tensors="pt")
    rounded = fused(**inputs).logits
    fused.cached_states.types = dict.fromkeys(fused.cached_states.types, "float32")
    assert not torch.allclose(fused(**inputs).logits, rounded, atol=1e-4)
