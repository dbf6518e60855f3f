"""What every registered system keeps to: a new one passes these with a row in `systemkit.CASES`."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from systemkit import CASES, EACH, same_weights

from pipeline.data import DataConfig, Examples
from pipeline.evaluate import EvaluateConfig, evaluate, judge_run
from pipeline.inputs import ImageInput, TextInput, VideoInput
from pipeline.probe import Layers, probe
from pipeline.run import Run
from pipeline.systems import (
    SYSTEMS,
    Setup,
    System,
    data_config,
    load_dataset,
    system_of,
    tasks,
    train_config,
)
from pipeline.systems.config import TrainConfig
from pipeline.systems.inference import feature_passes, run_passes
from pipeline.systems.taps import Layout
from pipeline.tasks.base import Moment
from pipeline.train import train
from pipeline.training.job import make_model, training_states
from pipeline.training.setup import fold_setup, identity, make_loader, prepare
from unipt import SideModel

each_case = pytest.mark.parametrize("name", CASES)
MODALITIES = {"text", "image", "video", "audio", "pair"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for the data and caches of each case."""
    return {name: tmp_path_factory.mktemp(name) for name in CASES}


@pytest.fixture
def config(folders: dict[str, Path], name: str) -> TrainConfig:
    """One epoch of a case."""
    return CASES[name].config(folders[name], epochs=1)


@pytest.fixture
def setup(config: TrainConfig) -> Setup:
    """The setup of a case."""
    return prepare(config)


# --- what is registered


def test_every_system_has_a_case() -> None:
    assert {case.system for case in CASES.values()} == set(SYSTEMS) == set(EACH)


def test_no_task_is_of_two_systems() -> None:
    assert len(set(tasks())) == len(tasks()) == sum(map(len, SYSTEMS.values()))


@pytest.mark.parametrize("task", tasks())
def test_a_task_names_its_system_and_its_configurations(task: str, tmp_path: Path) -> None:
    system = system_of(task)
    assert isinstance(system, System) and system_of(task) is system
    data = data_config({"task": task, "train": str(tmp_path / "x.tsv")})
    assert type(data) is system.Data and data.task == task
    assert data_config(data) is data
    assert data_config(json.loads(data.model_dump_json())) == data
    assert data_config({**data.model_dump(mode="json")}) == data


@pytest.mark.parametrize("place", SYSTEMS)
def test_the_configurations_explain_every_field(place: str) -> None:
    system = system_of(SYSTEMS[place][0])
    assert issubclass(system.Data, DataConfig) and issubclass(system.Train, TrainConfig)
    assert issubclass(system.Model, SideModel)
    for kind in (system.Data, system.Train):
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name}"
    fields = set(system.Train.model_fields)
    assert set(system.Train.UNSEARCHED) <= fields
    assert {*system.Train.INSTEAD, *system.Train.INSTEAD.values()} <= fields
    assert system.Train.caches() and set(system.Train.caches()) <= fields


# --- the data


@each_case
def test_the_splits_are_examples(setup: Setup) -> None:
    assert {"train", "dev", "test"} == set(setup.dataset.splits)
    whole = setup.dataset.splits["train"]
    towers, size = setup.system.towers(setup.dataset), len(whole)
    assert size > 0
    ids: list[str] = []
    for name, tower in towers.items():
        for modality in tower.modalities:
            given = whole.inputs(name, modality)
            kind = {"text": TextInput, "image": ImageInput, "video": VideoInput}[modality]
            assert len(given) == size
            assert all(isinstance(each, kind) for each in given)
            rows = whole.rows(name, modality)
            assert {each for _, each in rows} == set(given)
            assert all(row.startswith("train/") for row, _ in rows)
        ids += [row for row, _ in rows]
    assert len(set(ids)) == len(ids)
    assert len(whole.groups) == size
    assert all(hash(group) is not None for group in whole.groups)
    assert whole.strata is None or whole.strata.shape == (size,)
    assert size in whole.counts.values()
    json.dumps(dict(whole.counts))


@each_case
def test_some_examples_are_taken(setup: Setup) -> None:
    whole = setup.dataset.splits["train"]
    rows = np.array([0, 3, 4, 9], dtype=np.int64)
    some: Examples = whole.take(rows)
    assert type(some) is type(whole) and len(some) == 4
    for name, tower in setup.system.towers(setup.dataset).items():
        modality = tower.modalities[0]
        given = whole.inputs(name, modality)
        assert list(some.inputs(name, modality)) == [given[row] for row in rows]
    assert [len({*some.groups[:n]}) for n in range(5)] == [
        len({whole.groups[row] for row in rows[:n]}) for n in range(5)
    ]
    everything = whole.take(np.arange(len(whole)))
    assert everything.digest() == whole.digest() != some.digest()
    assert whole.take(rows).digest() == some.digest()
    assert whole.take(rows[[0, 1, 2]]).digest() != some.digest()
    assert some.take(np.array([0, 2])).digest() == whole.take(rows[[0, 2]]).digest()


@each_case
def test_reading_again_gives_the_same(setup: Setup, config: TrainConfig) -> None:
    again = load_dataset(config.data)
    for name, examples in setup.dataset.splits.items():
        assert again.split(name).digest() == examples.digest()
    assert identity(config, prepare(config)) == identity(config, setup)


# --- towers, task and model


@each_case
def test_towers_are_those_of_the_configuration(setup: Setup, config: TrainConfig) -> None:
    towers = setup.system.towers(setup.dataset)
    assert list(towers) == list(config.towers) == list(setup.taps) == list(setup.caches)
    for tower in towers.values():
        assert tower.modalities and set(tower.modalities) <= MODALITIES
        assert tower.layouts and set(tower.layouts) <= set(get_args(Layout))


@each_case
def test_a_task_scores_every_choice_of_units(setup: Setup, config: TrainConfig) -> None:
    task, train_split = setup.task, setup.splits["train"]
    assert task.metrics
    assert json.loads(json.dumps(task.facts)) == task.facts
    assert setup.system.task(setup.dataset).facts == task.facts
    torch.manual_seed(0)
    model = make_model(config, setup)
    outputs = run_passes(model, setup, train_split, batch_size=16)
    judged = task.judge(outputs, train_split.examples)
    assert len(judged) > 0 and judged.unit and judged.digits > 0
    whole = judged.metrics()
    assert task.metrics[0] in whole and all(np.isfinite(list(whole.values())))
    assert judged.metrics(np.arange(len(judged))) == pytest.approx(whole)
    assert judged.metrics(np.repeat(np.arange(len(judged)), 2)) == pytest.approx(whole)
    some = judged.metrics(np.random.default_rng(0).integers(0, len(judged), len(judged)))
    assert some.keys() == whole.keys() and some != whole
    assert all(np.isfinite(list(judged.extras().values())))
    for kind, records in judged.records().items():
        found = [json.loads(json.dumps(record)) for record in records]
        assert kind and found and all("id" in record for record in found)
        for record in found:
            assert sum(record["confidence"]) == pytest.approx(1, abs=1e-4)
    assert "predictions" in judged.records()


@each_case
def test_a_model_is_built_from_the_seed_and_from_its_options(
    setup: Setup, config: TrainConfig
) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = make_model(config, setup)
        states.append(model.state_dict())
    assert isinstance(model, setup.system.Model)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])
    again = setup.system.Model.from_config(json.loads(json.dumps(model.config)))
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    one, two = (
        run_passes(each, setup, setup.splits["dev"], batch_size=8) for each in (model, again)
    )
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a.values[key], b.values[key]) for key in a.values)


@each_case
def test_its_side_towers_are_parts_of_the_model(setup: Setup, config: TrainConfig) -> None:
    model = make_model(config, setup)
    sides = setup.system.sides(model)
    modules = {id(module) for module in model.modules()}
    assert all(id(side) in modules for side, _ in sides)
    read = [tower for _, towers in sides for tower in towers]
    assert sorted(read) == sorted(setup.taps)
    for side, towers in sides:
        assert {setup.taps[tower].names for tower in towers} == {side.stream.taps}


@each_case
def test_a_step_has_a_finite_loss_whose_gradient_reaches_every_parameter(
    setup: Setup, config: TrainConfig
) -> None:
    torch.manual_seed(0)
    model = make_model(config, setup).train()
    train_split = setup.splits["train"]
    targets = setup.task.targets(train_split.examples, train_split.clean)
    batch = next(make_loader(config, setup).epoch(0))
    now = Moment(0, 0, 4)
    states = training_states(config, setup, batch, now)
    assert {name: tuple(each.states) for name, each in states.items()} == {
        name: tuple(tap.name for tap in taps.read) for name, taps in setup.taps.items()
    }
    loss = setup.task.loss(model(states), targets.batch(batch.index), now)
    assert loss.dim() == 0 and torch.isfinite(loss)
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert torch.isfinite(value.grad).all(), parameter


@each_case
def test_passes_cover_every_tower_and_features_are_flat(setup: Setup) -> None:
    located = setup.splits["dev"]
    passes = setup.system.passes(located)
    assert sorted(tower for samples in passes for tower in samples) == sorted(setup.taps)
    for samples in passes:
        assert len({len(rows) for rows in samples.values()}) == 1
        for tower, rows in samples.items():
            assert set(rows.tolist()) == set(located.clean[tower].tolist())
    found = feature_passes(setup.system, setup.caches, setup.taps, located)
    assert len(found) == len(passes)
    for samples, each in zip(passes, found, strict=True):
        count = len(next(iter(samples.values())))
        assert each.values
        for name, value in each.values.items():
            bounds = each.offsets.get(name, torch.arange(count + 1))
            assert len(bounds) == count + 1 and len(value) == bounds[-1]
            assert value.dtype == torch.float32 and value.dim() == 2
            assert torch.isfinite(value).all()


@each_case
def test_folds_keep_groups_together(setup: Setup, config: TrainConfig) -> None:
    whole = setup.splits["train"].examples
    held: list[int] = []
    for fold in range(3):
        part = fold_setup(setup, config, fold, 3, seed=0)
        train_part, dev = part.splits["train"].examples, part.splits["dev"].examples
        assert set(part.splits) == {"train", "dev"}
        assert len(train_part) + len(dev) == len(whole)
        for tower in setup.taps:
            modality = setup.system.towers(setup.dataset)[tower].modalities[0]
            one, two = (set(each.inputs(tower, modality)) for each in (train_part, dev))
            assert not one & two
        held.append(len(dev))
    assert sum(held) == len(whole)
    assert max(held) <= 2 * min(held)


# --- a run


@each_case
def test_a_case_learns_and_a_run_opened_again_judges_the_same(
    folders: dict[str, Path], name: str
) -> None:
    case = CASES[name]
    config = case.config(folders[name], "learned")
    result = train(config)
    assert result.metrics["test"][case.learns] > case.above
    run = Run.open(result.path)
    assert run.system is system_of(run.task) and run.config == config
    assert train_config(json.loads(json.dumps(run.info["config"]))) == config
    model = run.model()
    assert not model.training
    trained = (p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(trained) == result.parameters
    judged = judge_run(run, EvaluateConfig(run=result.path, split="test", device="cpu"))
    assert judged.metrics() == result.metrics["test"]
    found = evaluate(EvaluateConfig(run=result.path, resamples=3, device="cpu"))
    assert {k: v.value for k, v in found.metrics.items()} == result.metrics["test"]
    for kind, records in judged.records().items():
        lines = (result.path / f"{kind}_test.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == json.loads(json.dumps(list(records)))


@each_case
def test_a_run_repeats(config: TrainConfig, folders: dict[str, Path], name: str) -> None:
    outs = [folders[name] / out for out in ("one", "two")]
    for out in outs:
        train(config.model_copy(update={"out": out}))
    assert same_weights(*outs)


@each_case
@pytest.mark.parametrize("layers", get_args(Layers))
def test_it_has_a_probe(config: TrainConfig, layers: Any) -> None:
    found = probe(config, layers, resamples=2)
    assert set(found.evaluations) == {"dev", "test"}
    assert found.features and found.chosen
    assert json.loads((config.out / f"probe_{layers}.json").read_text())["layers"] == layers
