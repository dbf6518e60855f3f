"""Models trained on pooled caches: the fused model pools what it records as extraction did."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import SENTENCES
from towerkit import make_towers

from pipeline.fused.loading import load_fused
from pipeline.fused.package import source_files
from pipeline.fused.write import export_model

ALONE = """
import json, sys
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
print(json.dumps(model.encode_image(json.loads(sys.argv[2])).tolist()))
"""


@pytest.mark.parametrize(
    ("pair", "pool", "forms"),
    [
        ("none", "mean", ("torch_export",)),
        ("separate", "max", ()),
        ("joint", "first", ()),
        ("none", "last", ()),
        ("joint", "first+std", ()),
    ],
)
def test_a_classifier_over_one_vector_a_text(
    make: Callable[..., Any], tmp_path: Path, pair: str, pool: str, forms: tuple[Any, ...]
) -> None:
    made = make(pair=pair, pool=pool)
    assert {tap.kind for tap in made.cache.taps} == {"vector"}
    report = export_model(made.job(), tmp_path / "out", forms=forms)
    assert report.parity.worst < 1e-3
    assert all(row.changed == 0 for row in report.parity.rows)
    assert load_fused(tmp_path / "out").tower(next(iter(made.setup.caches))).spec["pool"] == pool


@pytest.mark.parametrize(
    ("text", "media", "pools", "options"),
    [
        ("bert", "resnet", ("mean", "cells=2"), {"store": "float16"}),
        ("bert", "resnet", ("none", "mean"), {}),
        ("clip", "clip", ("last", "mean"), {"clips": True}),
        ("siglip", "vit", ("max", "first"), {}),
        ("bert", "resnet", ("none", "cells=3"), {"clips": True}),
        ("bert", "vit", ("mean+std", "first+mean+std"), {"clips": True}),
    ],
    ids=["cells", "maps", "frames", "grid", "frame-cells", "frame-statistics"],
)
def test_towers_over_pooled_states(
    tmp_path: Path, text: str, media: str, pools: tuple[str, str], options: dict[str, Any]
) -> None:
    made = make_towers(tmp_path, text, media, pools=pools, **options)
    report = export_model(made.job(), tmp_path / "out")
    assert report.parity.worst < (1e-3 if "store" in options else 2e-5)
    assert [row.changed for row in report.parity.rows] == [0, 0, 0, 0]


def test_pooled_towers_load_where_the_project_is_not(tmp_path: Path) -> None:
    made = make_towers(tmp_path, "bert", "convnet", pools=("mean", "cells=3"))
    export_model(made.job(), tmp_path / "out")
    assert "backbones_pooling.py" in source_files("retrieval")
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-W", "error", "-c", ALONE, str(tmp_path / "out")),
            json.dumps([str(path) for path in made.paths]),
        ],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])) == len(made.paths)


def test_texts_are_pooled_over_their_own_tokens_only(make: Callable[..., Any]) -> None:
    made = make(pool="mean")
    longest, shortest = max(SENTENCES, key=len), min(SENTENCES, key=len)
    backbone = made.backbone
    from pipeline.inputs import TextInput

    alone = backbone.forward(backbone.encode([TextInput(shortest)]))
    beside = backbone.forward(backbone.encode([TextInput(longest), TextInput(shortest)]))
    for name, state in alone.items():
        assert (state[0] - beside[name][1]).abs().max() < 1e-5
