"""Probes on pooled features, against pooling by hand and scikit-learn; chosen on dev alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairkit import pair_config
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SkRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from stagekit import TAPS, WIDTH, states_of, train_config
from systemkit import CASES, EACH

from pipeline.inputs import TextInput
from pipeline.probe import probe
from pipeline.systems import Setup
from pipeline.systems.inference import feature_passes
from pipeline.tasks import ridge as ridges
from pipeline.tasks.ranks import chance
from pipeline.tasks.ridge import Ridge, ridge_probes
from pipeline.training.setup import prepare
from unipt import Outputs

each_system = pytest.mark.parametrize("name", EACH.values())


def features(setup: Setup, split: str = "train") -> list[Outputs]:
    return feature_passes(setup.system, setup.caches, setup.taps, setup.splits[split])


def by_hand(texts: list[TextInput], taps: range = range(3)) -> torch.Tensor:
    return torch.stack(
        [torch.cat([states_of(text)[tap].float().mean(0) for tap in taps]) for text in texts]
    )


def test_features_are_the_means_of_the_taps(tmp_path: Path) -> None:
    setup = prepare(train_config(tmp_path))
    (found,) = features(setup)
    texts = setup.splits["train"].examples.inputs("text", "text")
    assert found.values["features"].shape == (len(texts), len(TAPS) * WIDTH)
    torch.testing.assert_close(found.values["features"], by_hand(texts), atol=1e-5, rtol=1e-5)


def test_pairs_are_compared(tmp_path: Path) -> None:
    setup = prepare(CASES["compared"].config(tmp_path))
    (found,) = features(setup)
    examples = setup.splits["train"].examples
    u, v = (by_hand(examples.inputs(name, "text")) for name in ("first", "second"))
    wanted = torch.cat([u, v, (u - v).abs(), u * v], 1)
    torch.testing.assert_close(found.values["features"], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["map", "grid", "vector", "frames_grid", "frames_vector"])
def test_features_of_images_and_videos_are_the_means_of_each_tap(
    tmp_path: Path, layout: str
) -> None:
    setup = prepare(pair_config(tmp_path, layout))
    cache, taps = setup.caches["media"], setup.taps["media"]
    text, media = features(setup)
    anchor = setup.taps["text"].anchor.shape[-1]
    assert torch.equal(text.values["sentence"], text.values["text"][:, -anchor:])
    items = setup.system.passes(setup.splits["train"])[1]["media"]
    assert len(media.values["media"]) == len(items) == len(np.unique(items))
    for row in (0, 3, len(items) - 1):
        read = cache.read(items[[row]], taps.names)
        wanted = []
        for tap in taps.taps:
            values = read[tap.name].float()  # [1, C, H, W], [1, P, D], [1, D], [F, P, D] or [F, D]
            means = (0, 2, 3) if values.dim() == 4 else tuple(range(values.dim() - 1))
            wanted.append(values.mean(means))
        found = media.values["media"][row]
        torch.testing.assert_close(found, torch.cat(wanted), atol=1e-5, rtol=1e-4)


@each_system
def test_all_layers_beat_the_last_where_the_signal_is_below(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    config = case.config(tmp_path)
    last, every = (probe(config, layers, resamples=20) for layers in ("last", "all"))
    assert set(every.evaluations) == {"dev", "test"}
    metric = next(iter(every.evaluations["test"].metrics))
    values = [found.evaluations["test"].metrics[metric].value for found in (last, every)]
    assert values[1] > (1.3 * values[0] if case.below else case.above)
    widths = {n: (t.anchor.shape[-1], sum(x.shape[-1] for x in t.taps))
              for n, t in prepare(config).taps.items()}  # fmt: skip
    for layers, found in enumerate((last, every)):
        for key, count in found.features.items():
            tower = key if key in widths else next(iter(widths))  # "features", "sentence"
            assert count == widths[tower][0 if key == "sentence" else layers]
    stored = json.loads((config.out / "probe_all.json").read_text())
    assert stored == json.loads(json.dumps(every.to_dict()))
    assert probe(config, "all", resamples=20) == every
    assert every.render().count("probe, all layers") == 2
    assert last.render().count("probe, last layer ") == 2


def test_a_probe_of_texts_finds_the_class_and_of_a_ranking_the_item(tmp_path: Path) -> None:
    found = probe(CASES["classes"].config(tmp_path), "all", resamples=5)
    assert found.evaluations["test"].metrics["accuracy"].value >= 0.95
    config = CASES["images"].config(tmp_path)
    random = chance(prepare(config).splits["test"].examples.item_of)["rsum"]
    found = probe(config, "all", resamples=5)
    assert found.evaluations["test"].metrics["rsum"].value > 1.5 * random
    assert set(found.chosen) == {"direction", "strength"}


@pytest.mark.parametrize("name", ["scores", "compared"])
def test_regression_probe(tmp_path: Path, name: str) -> None:
    found = probe(CASES[name].config(tmp_path), "all", resamples=5)
    assert found.features == {"features": len(TAPS) * WIDTH * (4 if name == "compared" else 1)}
    assert found.evaluations["test"].metrics["pearson"].value > 0.8


def test_a_probe_is_scikit_learns_of_the_strength_that_is_best_on_dev(tmp_path: Path) -> None:
    config = CASES["classes"].config(tmp_path)
    found, setup = probe(config, "all", resamples=2), prepare(config)
    rows = {n: features(setup, n)[0].values["features"].numpy() for n in setup.splits}
    targets = {n: np.array(part.examples.targets) for n, part in setup.splits.items()}

    def fitted(strength: float) -> Any:
        model = LogisticRegression(C=strength, max_iter=500)
        return make_pipeline(StandardScaler(), model).fit(rows["train"], targets["train"])

    scores = {}
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        scores[strength] = fitted(strength).score(rows["dev"], targets["dev"])
    best = max(scores.values())
    first = next(strength for strength, score in scores.items() if score == best)
    assert found.chosen == {"strength": first}  # of equals the strongest penalty
    value = fitted(first).score(rows["test"], targets["test"])
    assert found.evaluations["test"].metrics["accuracy"].value == pytest.approx(value)


@pytest.mark.parametrize("name", ["scores", "images"])
def test_fit_on_dev_keeps_what_was_chosen_and_fits_both(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    data = case.values(tmp_path)["data"]
    chosen = probe(case.config(tmp_path, data=data), "all", resamples=2)
    config = case.config(tmp_path, data=data | {"fit_on_dev": True})
    found = probe(config, "all", resamples=2)
    assert found.chosen == chosen.chosen
    assert set(found.evaluations) == {"test"}
    setup = prepare(config)
    (model,) = setup.task.probes(features(setup), setup.splits["train"].examples, chosen.chosen)
    test = setup.splits["test"].examples
    values = setup.task.judge(model.outputs(features(setup, "test")), test).metrics()
    metrics = found.evaluations["test"].metrics
    assert {k: metrics[k].value for k in metrics} == pytest.approx(values)
    before = chosen.evaluations["test"].metrics
    if name == "scores":
        rows = [features(setup, n)[0].values["features"].numpy() for n in ("train", "test")]
        by_sklearn = make_pipeline(StandardScaler(), SkRidge(alpha=chosen.chosen["strength"]))
        by_sklearn.fit(rows[0], setup.splits["train"].examples.targets)
        r = np.corrcoef(by_sklearn.predict(rows[1]), test.targets)[0, 1]
        assert metrics["pearson"].value == pytest.approx(r)
        assert r != pytest.approx(before["pearson"].value, abs=1e-9)


def test_a_hidden_test_is_not_compared_with(tmp_path: Path) -> None:
    config = CASES["classes"].config(tmp_path)
    hidden = tmp_path / "hidden.tsv"
    rows = (tmp_path / "rows.tsv").read_text().splitlines()[1:30]
    hidden.write_text("\n".join(["text", *(row.split("\t")[0] for row in rows)]) + "\n")
    data = config.data.model_copy(update={"test": hidden})
    found = probe(config.model_copy(update={"data": data}), "last", resamples=2)
    assert set(found.evaluations) == {"dev"}


def test_ridge_is_the_closed_form_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, width in ((30, 6), (6, 30)):  # primal, dual
        x, y = (torch.randn(rows, w, generator=generator, dtype=torch.float64) for w in (width, 4))
        model = Ridge(x, y)
        for alpha in (0.1, 100.0):
            wanted = SkRidge(alpha=alpha, fit_intercept=False).fit(x.numpy(), y.numpy()).coef_.T
            assert np.allclose(model.weights(alpha).numpy(), wanted, atol=1e-8)


def test_every_direction_and_strength_is_tried_and_one_can_be_asked_for() -> None:
    torch.manual_seed(0)
    item_of = np.repeat(np.arange(5), 2)
    given = [
        Outputs({"text": torch.randn(10, 4), "sentence": torch.randn(10, 3)}),
        Outputs({"media": torch.randn(5, 6)}),
    ]
    every = list(ridge_probes(given, item_of, None))
    tried = [(each.describe()["strength"], each.describe()["direction"]) for each in every]
    assert len(set(tried)) == len(tried) == len(ridges.STRENGTHS) * 4
    assert [strength for strength, _ in tried[::4]] == list(ridges.STRENGTHS)
    shapes = {"text_to_media": 6, "media_to_text": 4, "media_to_sentence": 3, "both": 10}
    for each in every[:4]:
        text, media = each.outputs(given)
        width = shapes[each.direction]
        assert text.values["text"].shape == (10, width)
        assert media.values["media"].shape == (5, width)
        (again,) = ridge_probes(given, item_of, each.describe())
        assert all(
            torch.equal(a.values[k], b.values[k])
            for a, b in zip(again.outputs(given), (text, media), strict=True)
            for k in a.values
        )
    # "both" is the sum of the two cosines
    scores = {each.direction: each.outputs(given) for each in every[:4]}
    products = {
        way: text.values["text"] @ media.values["media"].T for way, (text, media) in scores.items()
    }
    wanted = products["text_to_media"] + products["media_to_text"]
    torch.testing.assert_close(products["both"], wanted)
