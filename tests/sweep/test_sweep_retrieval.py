"""Sweeps over two towers: the same study, the same training, one trial at a time."""

from pathlib import Path
from typing import Any

import pytest
from pairkit import settings

from pipeline.sweep import RetrievalSweepConfig, SweepResult, sweep

SPACE = {"lr": "log:1e-3..3e-2", "text_side_width": "4,8", "memory_sharpness": "0.5,1"}


def pair_sweep(folder: Path, out: str = "sweep", **changes: Any) -> RetrievalSweepConfig:
    values = settings(folder, out=out, epochs=3, embed_width=None, ema=0.5)
    return RetrievalSweepConfig.build(
        values | {"space": SPACE, "trials": 4, "sampler": "random", "eta": 2, "keep": 2} | changes
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def result(place: Path) -> SweepResult:
    """Four trials, rungs after epochs 1 and 2, of which 2 and 1 trials go on."""
    return sweep(pair_sweep(place))


def test_rungs_keep_the_best_and_the_others_stop(result):
    ended = [(trial["epochs"], trial["rung"], trial["state"]) for trial in result.trials]
    assert sorted(ended) == [(1, 0, "pruned")] * 2 + [(2, 1, "pruned"), (3, 2, "complete")]
