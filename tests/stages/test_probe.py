"""Probes on pooled features, against pooling by hand; the pictures of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline.training.build import prepare
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from stagekit import (
    TAPS,
    WIDTH,
    build_cache,
    cached,
    states_of,
    train_config,
    write_pairs,
)

from cache import Cache
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.inputs import TextInput
from pipeline.probe import pooled_features, probe
from pipeline.report import read_evaluations, report
from pipeline.train import train

TEXTS = [TextInput(text) for text in ("good one", "a", "bad two three", "good four words here")]


def by_hand(texts: list[TextInput], taps: list[int]) -> np.ndarray:
    means = [torch.cat([states_of(x)[t].float().mean(0) for t in taps]) for x in texts]
    return torch.stack(means).numpy()


def test_features_are_the_means_of_the_taps(tmp_path: Path) -> None:
    cache = Cache.open(build_cache(tmp_path / "cache", TEXTS))
    samples = np.array([2, 0, 3, 1, 0])
    order = [TEXTS[i] for i in samples]
    everything = pooled_features(cache, samples, TAPS)
    assert everything.shape == (5, len(TAPS) * WIDTH)
    np.testing.assert_allclose(everything, by_hand(order, [0, 1, 2]), atol=1e-5)
    last = pooled_features(cache, samples, TAPS[-1:])
    np.testing.assert_allclose(last, by_hand(order, [2]), atol=1e-5)


def test_pairs_are_compared(tmp_path: Path) -> None:
    cache = Cache.open(build_cache(tmp_path / "cache", TEXTS))
    found = pooled_features(cache, np.array([[0, 2], [1, 1]]), TAPS)
    u, v = by_hand([TEXTS[0], TEXTS[1]], [0, 1, 2]), by_hand([TEXTS[2], TEXTS[1]], [0, 1, 2])
    np.testing.assert_allclose(found, np.concatenate([u, v, abs(u - v), u * v], 1), atol=1e-5)


def test_all_layers_beat_the_last_where_the_signal_is_below(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    last, everything = (probe(config, layers, resamples=20) for layers in ("last", "all"))
    assert (last.features, everything.features) == (WIDTH, len(TAPS) * WIDTH)
    score = everything.evaluations["test"].metrics["accuracy"]
    assert score.value >= 0.95
    assert score.value > last.evaluations["test"].metrics["accuracy"].value
    assert set(everything.evaluations) == {"dev", "test"}
    stored = json.loads((config.out / "probe_all.json").read_text())
    assert stored == everything.to_dict()
    again = probe(config, "all", resamples=20)
    assert again == everything


@pytest.mark.parametrize("pair", ["joint", "separate"])
def test_regression_probe(tmp_path: Path, pair: str) -> None:
    data = {
        "task": "regression", "train": str(write_pairs(tmp_path / "pairs.csv")), "pair": pair,
        "text": "a", "text_pair": "b", "label": "score",
    }  # fmt: skip
    cached(tmp_path, data)
    found = probe(train_config(tmp_path, data=data), "all", resamples=5)
    assert found.features == len(TAPS) * WIDTH * (4 if pair == "separate" else 1)
    assert found.evaluations["test"].metrics["pearson"].value > 0.8


def test_fit_on_dev_keeps_the_strength_and_fits_both(tmp_path: Path) -> None:
    data = {
        "task": "regression", "train": str(write_pairs(tmp_path / "pairs.csv")), "pair": "joint",
        "text": "a", "text_pair": "b", "label": "score",
    }  # fmt: skip
    cached(tmp_path, data)
    chosen = probe(train_config(tmp_path, data=data), "all", resamples=2)
    config = train_config(tmp_path, data=data | {"fit_on_dev": True})
    found = probe(config, "all", resamples=2)
    assert found.strength == chosen.strength
    assert set(found.evaluations) == {"test"}
    setup = prepare(config)
    features = {
        name: pooled_features(setup.cache, part.samples, setup.tap_names)
        for name, part in setup.splits.items()
    }
    by_hand = make_pipeline(StandardScaler(), Ridge(alpha=chosen.strength))
    by_hand.fit(features["train"], setup.splits["train"].targets)
    r = np.corrcoef(by_hand.predict(features["test"]), setup.splits["test"].targets)[0, 1]
    assert found.evaluations["test"].metrics["pearson"].value == pytest.approx(r)
    assert r != pytest.approx(chosen.evaluations["test"].metrics["pearson"].value, abs=1e-9)


def test_pictures_of_a_run_beside_its_probes(tmp_path: Path) -> None:
    config = train_config(tmp_path, epochs=2)
    train(config)
    evaluate(EvaluateConfig(run=config.out, resamples=10))
    for layers in ("all", "last"):
        probe(config, layers, resamples=10)
    names = [row["name"] for row in read_evaluations(config.out, "test")]
    assert names == ["probe, last layer", "probe, all layers", "side network"]
    files = report(config.out, tmp_path / "pictures")
    assert [file.name for file in files] == ["confidence.png", "learning.png", "comparison.png"]
    for file in files:
        data = file.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        assert width > height > 300
