"""Evaluation of two towers and the ridge baseline: the protocol, the right caches, the pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pairkit import pair_config, settings, write_caches, write_data
from pipeline.retrieval.build import prepare_retrieval
from pipeline.retrieval.evaluate import RetrievalEvaluation, render_retrieval
from pipeline.retrieval.inference import embed
from pipeline.retrieval.metrics import chance, folded, rank_all, summarize
from pipeline.retrieval.ridge import _Ridge, pooled_features, ridge
from pipeline.retrieval.train import train_retrieval
from sklearn.linear_model import Ridge

from cache import Cache, FingerprintMismatch
from pipeline.config import ConfigError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.reading.tables import DataError
from pipeline.report import report
from pipeline.run import Run


def evaluation(run: Path, **values: object) -> RetrievalEvaluation:
    config = EvaluateConfig.build({"run": run, "resamples": 50, "device": "cpu"} | values)
    result = evaluate(config)
    assert isinstance(result, RetrievalEvaluation)
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieval")
    data = settings(folder)["data"] | {"folds": 3}
    train_retrieval(pair_config(folder, data=data, epochs=4))
    return folder


def test_it_is_the_protocol_over_the_towers_vectors(trained: Path) -> None:
    found = evaluation(trained / "run")
    run = Run.open(trained / "run")
    setup = prepare_retrieval(pair_config(trained, data=run.info["config"]["data"]))
    located = setup.splits["test"]
    model = run.towers()
    vectors = {
        name: embed(
            tower, setup.caches[name], setup.taps[name], samples[:, 0], batch_size=5,
            device=torch.device("cpu"),
        ).vectors
        for name, tower, samples in (
            ("text", model.text, located.text), ("media", model.media, located.media)
        )
    }  # fmt: skip
    owner = located.split.item_of
    wanted = summarize(rank_all(vectors["text"], vectors["media"], owner))
    assert {k: v.value for k, v in found.metrics.items()} == {k: wanted[k] for k in found.metrics}
    assert found.positions["m2t_median_rank"] == wanted["m2t_median_rank"]
    assert found.folds == folded(vectors["text"], vectors["media"], owner, 3)
    assert all(m.low <= m.value <= m.high for m in found.metrics.values())
    assert run.info["metrics"]["test"] == wanted
    assert (found.examples, found.items) == (24, 12)
    assert json.loads((trained / "run" / "evaluation_test.json").read_text()) == found.to_dict()
    assert evaluation(trained / "run") == found


def test_the_embedding_of_a_sample_depends_on_no_other(trained: Path) -> None:
    run = Run.open(trained / "run")
    setup = prepare_retrieval(pair_config(trained, data=run.info["config"]["data"]))
    samples = setup.splits["train"].text[:7, 0]
    several = np.concatenate([samples, samples[::-1]])
    given = (run.towers().text, setup.caches["text"], setup.taps["text"])
    device = torch.device("cpu")
    together = embed(*given, several, batch_size=4, device=device)
    for number, sample in enumerate(several):
        alone = embed(*given, np.array([sample]), batch_size=1, device=device)
        torch.testing.assert_close(together.vectors[number], alone.vectors[0], atol=1e-5, rtol=1e-4)


def test_the_table_has_both_ways_and_the_folds(trained: Path) -> None:
    found = evaluation(trained / "run", split="dev")
    text = found.render()
    value = found.metrics["t2m_r1"]
    assert text.startswith("dev (24 captions, 12 items)")
    assert f"{value.value:.1f} [{value.low:.1f}, {value.high:.1f}]" in text
    assert "mean of 3 folds" in text
    assert text.count("media to text") == 2
    assert "95% bootstrap interval over items" in text
    assert render_retrieval([found, found]).count("side networks") == 2
    assert render_retrieval([]) == "(nothing was evaluated)"


def test_only_the_caches_it_was_trained_on(trained: Path, tmp_path: Path) -> None:
    from pairkit import LAYOUTS, write_cache

    from cache import TapSpec
    from pipeline.inputs import ImageInput

    keys = [(ImageInput(trained / f"{item:03}.png").key(), item) for item in range(60)]
    taps = [TapSpec(name=n, kind="grid", shape=s) for n, s in LAYOUTS["grid"][1].items()]
    other = write_cache(tmp_path / "other", taps, keys, shows="block.0", mark="b")
    with pytest.raises(FingerprintMismatch, match="is not the cache the run"):
        evaluation(trained / "run", media_cache=other)
    moved = tmp_path / "moved"
    (trained / "media-grid").rename(moved)
    try:
        assert evaluation(trained / "run", media_cache=moved).items == 12
    finally:
        moved.rename(trained / "media-grid")
    with pytest.raises(ConfigError, match="give text_cache or media_cache"):
        evaluation(trained / "run", cache=other)
    with pytest.raises(DataError, match="no split 'validation'"):
        evaluation(trained / "run", split="validation")


def test_ridge_is_the_closed_form_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, width in ((30, 6), (6, 30)):  # primal, dual
        x, y = (torch.randn(rows, w, generator=generator, dtype=torch.float64) for w in (width, 4))
        model = _Ridge(x, y)
        for alpha in (0.1, 100.0):
            model.choose(alpha)
            wanted = Ridge(alpha=alpha, fit_intercept=False).fit(x.numpy(), y.numpy()).coef_.T
            assert np.allclose(model.weights.numpy(), wanted, atol=1e-8)


def test_pooled_features_are_the_means_of_each_tap(tmp_path: Path) -> None:
    for layout in ("map", "frames_grid"):
        setup = prepare_retrieval(pair_config(tmp_path, layout))
        cache, taps = setup.caches["media"], setup.taps["media"]
        samples = setup.splits["train"].media[:, 0][[3, 0, 3]]
        found = pooled_features(cache, taps, samples, taps.names)
        for row, sample in zip(found, samples, strict=True):
            read = cache.read(np.array([sample]), taps.names)
            wanted = []
            for tap in taps.taps:
                values = read[tap.name].float()  # [1, C, H, W] or [F, P, D]
                wanted.append(values.mean((0, 2, 3)) if values.dim() == 4 else values.mean((0, 1)))
            torch.testing.assert_close(row, torch.cat(wanted), atol=1e-5, rtol=1e-4)


def test_ridge_finds_what_one_layer_shows(trained: Path) -> None:
    config = pair_config(trained)
    last, every = (ridge(config, layers, resamples=20) for layers in ("last", "all"))
    random = chance(prepare_retrieval(config).splits["test"].split.item_of)["rsum"]
    values = [r.evaluations["test"].metrics["rsum"].value for r in (last, every)]
    assert values[1] > 1.5 * random  # the last layers show nothing
    assert values[1] > 1.3 * values[0]
    assert (last.features, every.features) == ({"text": 8, "media": 8}, {"text": 24, "media": 16})
    stored = json.loads((config.out / "ridge_all.json").read_text())
    assert stored == json.loads(json.dumps(every.to_dict()))
    assert every.render().count("ridge, all layers") == 2


def test_the_report_draws_each_tower(trained: Path, tmp_path: Path) -> None:
    evaluation(trained / "run")
    names = {path.name for path in report(trained / "run", tmp_path)}
    assert names == {"confidence.png", "learning.png", "comparison.png"}


def test_captions_of_one_item_are_embedded_with_it_once(tmp_path: Path) -> None:
    write_data(tmp_path, captions=3)
    write_caches(tmp_path, captions=3)
    setup = prepare_retrieval(pair_config(tmp_path))
    located = setup.splits["test"]
    assert len(located.text) == 3 * len(located.media)
    assert Cache.open(tmp_path / "media-grid").n_samples == 60
