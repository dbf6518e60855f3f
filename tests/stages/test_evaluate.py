"""Evaluation, whatever the system: the metrics of the predictions, intervals, the right cache."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef
from stagekit import build_cache, read_lines, train_config
from systemkit import CASES, EACH, TEXTS, TOWERS, Case

from cache import Cache, FingerprintMismatch
from pipeline.config import ConfigError
from pipeline.data import DataError
from pipeline.evaluate import EvaluateConfig, Evaluation, evaluate, render_table
from pipeline.inputs import TextInput
from pipeline.reading.config import TextData
from pipeline.run import Run, RunError
from pipeline.systems import load_dataset
from pipeline.systems.inference import infer, run_passes, take
from pipeline.tasks.ranks import folded, rank_all, summarize
from pipeline.train import train
from pipeline.training.setup import prepare

each_system = pytest.mark.parametrize("name", EACH.values())


def evaluated(run: Path, **values: Any) -> Evaluation:
    given = {"run": run, "resamples": 50, "device": "cpu"} | values
    return evaluate(EvaluateConfig.build(given))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a small training of each system."""
    found = {}
    for name in EACH.values():
        folder = found[name] = tmp_path_factory.mktemp(name)
        case = CASES[name]
        data = case.values(folder)["data"] | ({"folds": 3} if case.system == TOWERS else {})
        train(case.config(folder, data=data, epochs=2))
    return found


@pytest.fixture
def run(folders: dict[str, Path], name: str) -> Path:
    """The run folder of one system."""
    return folders[name] / "run"


@each_system
@pytest.mark.parametrize("split", ["dev", "test", "train"])
def test_it_says_what_the_training_said_and_writes_it(run: Path, split: str) -> None:
    found = evaluated(run, split=split)
    assert all(m.low <= m.value <= m.high for m in found.metrics.values())
    assert json.loads((run / f"evaluation_{split}.json").read_text()) == found.to_dict()
    info = Run.open(run).info
    if split != "train":
        values = {k: v.value for k, v in found.metrics.items()}
        assert values == pytest.approx(info["metrics"][split])
        assert list(values) == list(info["metrics"][split])
    counts = info["examples"][split]
    assert found.examples == counts[found.unit]
    assert len(read_lines(run / f"predictions_{split}.jsonl")) == next(iter(counts.values()))
    assert evaluated(run, split=split) == found


@each_system
def test_the_table_shows_value_interval_and_unit(run: Path) -> None:
    found = evaluated(run)
    text = found.render()
    assert text.splitlines()[0].split("  ")[0] == f"test ({found.examples:,} {found.unit})"
    for value in found.metrics.values():
        shown = [f"{each:.{found.digits}f}" for each in (value.value, value.low, value.high)]
        assert f"{shown[0]} [{shown[1]}, {shown[2]}]" in text
    assert f"95% bootstrap interval over {found.unit}" in text
    assert all(f"{name} {value:g}" in text for name, value in found.extras.items())
    assert render_table([found, found]).count("side network") == 2
    assert render_table([]) == "(nothing was evaluated)"


@each_system
def test_an_output_depends_on_no_other_sample(run: Path, name: str) -> None:
    """Nor on their order; and equal samples go through the model once."""
    opened = Run.open(run)
    setup, model = prepare(opened.config), opened.model()
    for samples in setup.system.passes(setup.splits["train"]):
        first = {tower: rows[:7] for tower, rows in samples.items()}
        several = {tower: np.concatenate([rows, rows[::-1]]) for tower, rows in first.items()}
        options: dict[str, Any] = {"caches": setup.caches, "taps": setup.taps}
        options["device"] = torch.device("cpu")
        together = infer(model, several, batch_size=4, **options)
        for number in range(14):
            one = {tower: rows[[number]] for tower, rows in several.items()}
            alone = infer(model, one, batch_size=1, **options)
            own = take(together, np.array([number]))
            assert alone.values.keys() == own.values.keys()
            for key, values in alone.values.items():
                torch.testing.assert_close(own.values[key], values, atol=1e-5, rtol=1e-4)
            for key, bounds in alone.offsets.items():
                assert torch.equal(own.offsets[key], bounds)


@each_system
def test_a_model_keeps_its_mode(run: Path) -> None:
    opened = Run.open(run)
    setup, model = prepare(opened.config), opened.model()
    for training in (True, False):
        model.train(training)
        run_passes(model, setup, setup.splits["dev"], batch_size=4)
        assert model.training == training


def cache_options(case: Case, folder: Path) -> dict[str, Path]:
    """Return the place of the cache of each tower."""
    return {tower: Path(str(each.cache)) for tower, each in case.config(folder).towers.items()}


@each_system
def test_only_the_caches_it_was_trained_on_wherever_they_are(
    folders: dict[str, Path], run: Path, name: str, tmp_path: Path
) -> None:
    places = cache_options(CASES[name], folders[name])
    usual = evaluated(run)
    for tower, place in places.items():
        moved = tmp_path / tower
        place.rename(moved)
        try:
            assert evaluated(run, cache=(f"{tower}={moved}",)) == usual
            if len(places) == 1:
                assert evaluated(run, cache=(str(moved),)) == usual
        finally:
            moved.rename(place)
    if len(places) > 1:
        known = ", ".join(f"{tower}=..." for tower in places)
        with pytest.raises(ConfigError, match=f"has several towers; give {known}"):
            evaluated(run, cache=("/elsewhere",))


def test_a_pair_of_one_cache_takes_its_place_for_both_towers(tmp_path: Path) -> None:
    path = train(CASES["compared"].config(tmp_path, epochs=1)).path
    usual = evaluated(path)
    moved = (tmp_path / "cache").rename(tmp_path / "moved")
    assert evaluated(path, cache=(str(moved),)) == usual
    assert evaluated(path, cache=(f"first={moved}", f"second={moved}")) == usual


def test_another_cache_is_refused_with_the_difference(tmp_path: Path) -> None:
    config = train_config(tmp_path, epochs=1)
    path = train(config).path
    splits = load_dataset(config.data).splits.values()
    inputs = [given for split in splits for given in split.inputs("text", "text")]
    other = build_cache(tmp_path / "other", inputs, mark="b")
    with pytest.raises(FingerprintMismatch, match=r'weights: trained on "a", found "b"'):
        evaluated(path, cache=(str(other),))


@each_system
def test_what_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no examples in the split 'final'; there are: train"):
        evaluated(run, split="final")
    with pytest.raises(RunError, match="there is no run folder"):
        evaluated(tmp_path / "nowhere")
    copy = tmp_path / "old"
    shutil.copytree(run, copy)
    info = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(info | {"format": 1}))
    with pytest.raises(RunError, match="is not of format 2; train the run again"):
        evaluated(copy)


def test_metrics_are_those_of_the_predictions(folders: dict[str, Path]) -> None:
    run = folders[EACH[TEXTS]] / "run"
    for split in ("dev", "test", "train"):
        found = evaluated(run, split=split)
        records = read_lines(run / f"predictions_{split}.jsonl")
        truth, labels = [r["target"] for r in records], [r["label"] for r in records]
        assert found.metrics["accuracy"].value == pytest.approx(accuracy_score(truth, labels))
        assert found.metrics["matthews"].value == pytest.approx(matthews_corrcoef(truth, labels))


def test_a_ranking_is_the_protocol_over_the_towers_vectors(folders: dict[str, Path]) -> None:
    run = folders[EACH[TOWERS]] / "run"
    found, opened = evaluated(run), Run.open(run)
    setup = prepare(opened.config)
    located = setup.splits["test"]
    text, media = run_passes(opened.model(), setup, located, batch_size=5)
    vectors = text.values["text"], media.values["media"]
    owner = located.examples.item_of
    wanted = summarize(rank_all(*vectors, owner))
    assert {k: v.value for k, v in found.metrics.items()} == {k: wanted[k] for k in found.metrics}
    parts = folded(*vectors, owner, 3)
    ranks = {name: value for name, value in wanted.items() if name.endswith("_rank")}
    assert found.extras == ranks | {f"mean_of_3_folds_{k}": v for k, v in parts.items()}
    assert (found.examples, found.unit) == (12, "items")
    assert len(read_lines(run / "items_test.jsonl")) == 12
    assert "mean_of_3_folds_rsum" in found.render()


def test_captions_of_one_item_are_embedded_with_it_once(tmp_path: Path) -> None:
    from pairkit import pair_config, write_caches, write_data

    write_data(tmp_path, captions=3)
    write_caches(tmp_path, captions=3)
    setup = prepare(pair_config(tmp_path))
    text, media = setup.system.passes(setup.splits["test"])
    assert len(text["text"]) == 3 * len(media["media"])
    assert len(np.unique(media["media"])) == len(media["media"])
    assert Cache.open(tmp_path / "media-grid").n_samples == 60


def test_a_hidden_test_gives_predictions_only(tmp_path: Path) -> None:
    config = train_config(tmp_path, epochs=1)
    hidden = tmp_path / "hidden.jsonl"
    hidden.write_text('{"text": "good one"}\n{"text": "bad two"}\n')
    data = TextData.build({"train": str(config.data.train), "test": str(hidden)})
    splits = load_dataset(data).splits.values()
    texts: list[TextInput] = [t for split in splits for t in split.inputs("text", "text")]  # type: ignore[misc]
    cache = build_cache(tmp_path / "hidden", texts)
    path = train(config.model_copy(update={"data": data, "cache": cache})).path
    assert "test" not in Run.open(path).info["metrics"]
    found = evaluated(path)
    assert (found.metrics, found.extras) == ({}, {})
    assert "labels hidden" in found.render()
    records = read_lines(path / "predictions_test.jsonl")
    assert [r["target"] for r in records] == [None, None]
    assert {r["label"] for r in records} <= {"good", "bad"}


def test_changed_files_are_noticed(tmp_path: Path) -> None:
    path = train(train_config(tmp_path, epochs=1)).path
    file = tmp_path / "rows.tsv"
    file.write_text(file.read_text().replace("\tgood", "\tfine"))
    with pytest.raises(ValueError, match="restore the files"):
        evaluated(path)
