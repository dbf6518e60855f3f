"""The estimators are scikit-learn's: its own checks, searches and pipelines, on rows of a cache."""

import os
import pickle

import numpy as np
import pytest
from pairkit import LAYOUTS, write_caches, write_data
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator
from stagekit import cached, settings, train_config, write_pairs

from cache import Cache
from pipeline.config import ConfigError
from pipeline.estimators import CacheRows, UniPTClassifier, UniPTRegressor
from pipeline.run import Run
from pipeline.systems import data_config, load_dataset
from pipeline.systems.inference import run_passes
from pipeline.train import train
from pipeline.training.setup import prepare

SMALL = {"side_width": 8, "dropout": 0.1, "lr": 1e-2, "epochs": 3, "batch_size": 16}
CHECKED = {"side_width": 16, "out_width": 16, "dropout": 0.0, "lr": 2e-2, "epochs": 3}
NOT_MET = {
    "check_array_api_input": "X is rows of a cache or NumPy's, no array of another library",
    "check_methods_subset_invariance": "asks for 1e-7; float32 products of another batch differ by "
    "more (see test_a_row_alone_gets_what_it_gets_among_others)",
}
"""Checks that do not apply, each with the reason; all others pass."""


def checks():
    """Return every applicable check of scikit-learn, for both estimators."""
    kinds = (UniPTClassifier, UniPTRegressor)
    pairs = [
        pair
        for kind in kinds
        for pair in estimator_checks_generator(kind(random_state=0, device="cpu", **CHECKED))
    ]
    names = {check.func.__name__ for _, check in pairs}
    assert names >= NOT_MET.keys()
    return [
        pytest.param(one, check, id=f"{type(one).__name__}-{check.func.__name__}-{number}")
        for number, (one, check) in enumerate(pairs)
        if check.func.__name__ not in NOT_MET
    ]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Temporary caches need not survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


@pytest.fixture
def rows(tmp_path):
    """All training rows of the made-up cache, with their labels."""
    config = train_config(tmp_path)
    dataset = load_dataset(config.data)
    return CacheRows.of_split(config.cache, dataset, "train")


def estimator(**changes):
    return UniPTClassifier(**(SMALL | {"random_state": 0, "device": "cpu"} | changes))


@pytest.mark.parametrize(("one", "check"), checks())
def test_checks_of_scikit_learn(one, check):
    check(one)


def test_a_row_alone_gets_what_it_gets_among_others(rows):
    x, y = rows
    model = estimator().fit(x, y)
    together = model.predict_proba(x[:20])
    alone = np.concatenate([model.predict_proba(x[row]) for row in range(20)])
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_rows_are_cut_up_like_an_array(rows):
    x, _ = rows
    assert len(x) == x.shape[0] == 82
    picked = x[np.array([3, 1, 2])]
    assert picked.rows.tolist() == x.rows[[3, 1, 2]].tolist()
    assert x[:5].rows.tolist() == x.rows[:5].tolist()
    assert x[np.arange(82) % 2 == 0].shape == (41,)
    assert x[7].rows.tolist() == [x.rows[7]]
    assert x[np.array([3, 1]), ...].rows.tolist() == x.rows[[3, 1]].tolist()
    again = pickle.loads(pickle.dumps(x[:5]))
    assert again.rows.tolist() == x.rows[:5].tolist()
    assert "82 rows" in repr(x)


def test_all_rows_of_a_cache_by_default(rows):
    x, _ = rows
    assert len(CacheRows(x.cache)) == Cache.open(str(x.cache.path)).n_samples == 120


def test_it_trains_as_train_does(tmp_path, rows):
    """With dev rows added, and the last epoch kept, `train` gives the same weights."""
    values = settings(tmp_path, "run", **SMALL, seed=5)
    values["data"] = values["data"] | {"fit_on_dev": True}
    config = train_config(tmp_path, **{k: v for k, v in values.items() if k != "out"})
    train(config)
    x, y = CacheRows.of_split(config.cache, load_dataset(config.data), "train")

    class Fixed(np.random.RandomState):
        def randint(self, *_args, **_kwargs):
            return 5

    model = estimator(random_state=Fixed()).fit(x, y)
    run = Run.open(config.out)
    setup = prepare(config)
    (found,) = run_passes(run.model(), setup, setup.splits["train"], batch_size=64)
    ours = found.values["logits"].numpy()
    np.testing.assert_array_equal(model._outputs(x), ours)
    np.testing.assert_array_equal(model.predict_proba(x).argmax(1), ours.argmax(1))


def test_cross_validation_search_and_pipeline(rows):
    x, y = rows
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    scores = cross_val_score(estimator(epochs=8), x, y, cv=folds)
    assert scores.mean() > 0.9
    pipeline = Pipeline([("side", estimator(epochs=8))])
    search = GridSearchCV(pipeline, {"side__lr": [1e-7, 1e-2]}, cv=folds).fit(x, y)
    assert search.best_params_ == {"side__lr": 1e-2}
    assert search.score(x, y) > 0.9
    assert set(search.predict(x[:10])) <= {"bad", "good"}


def test_a_clone_of_equal_seed_is_equal(rows):
    x, y = rows
    one = estimator().fit(x, y)
    two = clone(one).fit(x, y)
    assert np.array_equal(one.predict_proba(x), two.predict_proba(x))
    assert not np.array_equal(
        one.predict_proba(x), estimator(random_state=1).fit(x, y).predict_proba(x)
    )
    np.testing.assert_allclose(one.predict_proba(x).sum(1), 1.0)
    assert [record["epoch"] for record in one.history_] == [1, 2, 3]


def test_scores_are_in_the_unit_of_the_targets(rows):
    x, y = rows
    targets = np.where(y == "good", 130.0, 70.0)
    model = UniPTRegressor(**(SMALL | {"epochs": 10}), random_state=0, device="cpu")
    assert cross_val_score(model, x, targets, cv=KFold(3)).mean() > 0.5
    assert 60 < model.fit(x, targets).predict(x).mean() < 140


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_and_videos_in_every_layout(tmp_path, layout):
    write_data(tmp_path)
    x = CacheRows(write_caches(tmp_path, layout)["media_cache"])
    y = np.arange(len(x)) % 2
    model = estimator(side_width=4, taps=None).fit(x, y)
    assert model.predict_proba(x).shape == (60, 2)
    assert len(model.predict(x[3])) == 1


def test_pairs_that_are_compared(tmp_path):
    data = {"train": str(write_pairs(tmp_path / "pairs.csv")), "text": "a", "text_pair": "b"}
    data |= {"label": "score", "pair": "separate", "task": "regression"}
    cached(tmp_path, data)
    x, y = CacheRows.of_split(tmp_path / "cache", load_dataset(data_config(data)), "train")
    assert x.shape == (len(y), 2)
    model = UniPTRegressor(**SMALL, random_state=0, device="cpu").fit(x, y)
    assert model.predict(x[:4]).shape == (4,)
    with pytest.raises(ValueError, match=r"X has 1 input\(s\) a row, and the model reads 2"):
        model.predict(CacheRows(x.cache))


def test_what_does_not_fit_is_refused(tmp_path, rows):
    x, y = rows
    with pytest.raises(ValueError, match="82 rows and y 81"):
        estimator().fit(x, y[:-1])
    with pytest.raises(ValueError, match="one class, good"):
        estimator().fit(x, np.full(len(x), "good"))
    with pytest.raises(ConfigError, match="dropout: Input should be less than 1"):
        estimator(dropout=2.0).fit(x, y)
    with pytest.raises(NotFittedError):
        estimator().predict(x)
