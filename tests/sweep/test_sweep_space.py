"""Search spaces: their words, their points, and what a run refuses before anything starts."""

from pathlib import Path

import pytest
from pydantic import create_model
from scipy import stats
from sklearn.model_selection import ParameterGrid

from pipeline.config import ConfigError
from pipeline.sweep import SweepConfig
from pipeline.sweep.axis import parse_axis
from pipeline.sweep.space import Space, read_space
from pipeline.systems.texts import TextTrainConfig
from pipeline.systems.two_towers import TwoTowersTrainConfig

LEAST = {"out": "o", "space": {"lr": [1]}}


def base(**changes: object) -> TextTrainConfig:
    return TextTrainConfig.build(
        {"data": {"train": "rows.tsv"}, "cache": "cache", "out": "out"} | changes
    )


@pytest.mark.parametrize(
    ("words", "ends", "count"),
    [
        ("2,4,8", [2, 4, 8], 3),
        ("none,layer", ["none", "layer"], 2),
        ("1e-4,3e-4", [1e-4, 3e-4], 2),
        ("0..0.5", [0.0, 0.5], 0),
        ("log:1e-4..1e-2", [1e-4, 1e-2], 0),
        ("int:2..10", [2, 10], 9),
        ("int:16..128:48", [16, 112], 3),
        ("logint:8..512", [8, 512], 505),
        ("0..1:0.25", [0.0, 1.0], 5),
        ([2, 4], [2, 4], 2),
        ({"low": 1, "high": 4, "int": True}, [1, 4], 4),
        (stats.loguniform(1e-4, 1e-2), [1e-4, 1e-2], 0),
        (stats.uniform(0, 0.5), [0.0, 0.5], 0),
        (stats.randint(2, 11), [2, 10], 9),
        (7, [7], 1),
    ],
)
def test_an_axis_says_what_it_holds(words, ends, count):
    axis = parse_axis("lr", words)
    assert axis.ends() == pytest.approx(ends) if count == 0 else axis.ends() == ends
    assert axis.count() == count
    assert all(type(value) is type(end) for value, end in zip(axis.ends(), ends, strict=True))
    again = parse_axis("lr", axis.to_json())
    assert [again.at(x) for x in (0.0, 0.3, 0.99)] == [axis.at(x) for x in (0.0, 0.3, 0.99)]


def test_whole_numbers_and_steps_get_equal_parts():
    axis = parse_axis("epochs", "int:2..4")
    assert [axis.at(x) for x in (0.0, 0.32, 0.34, 0.66, 0.67, 0.999)] == [2, 2, 3, 3, 4, 4]
    assert parse_axis("dropout", "0..0.5:0.25").values() == [0.0, 0.25, 0.5]


def test_other_distributions_of_scipy_keep_their_shape():
    axis = parse_axis("noise", stats.expon(scale=0.1))
    assert axis.at(0.5) == pytest.approx(stats.expon(scale=0.1).median())
    assert parse_axis("noise", axis.to_json()).at(0.25) == axis.at(0.25)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("5..2", "first end must be below"),
        ("log:0..1", "must begin above 0"),
        ("int:1.5..3", "whole numbers"),
        ("log:1..8:2", "has no step"),
        ("a..b", "no range of numbers"),
        ([], "empty list"),
        ("2,2", "one value twice"),
        ({"low": 1}, "needs low and high"),
    ],
)
def test_an_unreadable_axis_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        Space.parse({"lr": words})


def test_all_misfits_are_told_at_once_with_what_is_allowed():
    space = Space.parse(
        {"lr": "0..1", "dropout": [0.1, 1.5], "pooling": "mean,sum", "speed": "1,2", "seed": "1,2"}
    )
    with pytest.raises(ConfigError) as caught:
        space.check(base())
    told = str(caught.value)
    assert "5 problem(s)" in told
    assert "lr: 0.0 is not allowed: Input should be greater than 0" in told
    assert "dropout: 1.5 is not allowed: Input should be less than 1" in told
    assert "'attention'" in told
    assert "speed: no field of a run; known: batch_size, beta2" in told
    assert "seed: is the same for all trials" in told


def test_a_field_without_effect_is_refused():
    with pytest.raises(ConfigError, match="reduction: has no effect where side_width is given"):
        Space.parse({"reduction": [2, 4]}).check(base(side_width=8))


def test_what_trials_are_not_scored_with_is_refused():
    with pytest.raises(ConfigError, match="kernel_keys: cannot be searched: trials are scored"):
        Space.parse({"kernel_keys": [1, 2]}).check(base())


def test_each_system_says_what_is_the_same_for_all_trials():
    run = TwoTowersTrainConfig.build(
        {"data": {"task": "retrieval", "train": "c.csv"}, "text_cache": "t", "media_cache": "m"}
        | {"out": "out", "text_side_width": 8}
    )
    space = Space.parse(
        {"recipe": "default,clip4clip", "media_cache": "a,b", "text_reduction": [2]}
    )
    with pytest.raises(ConfigError) as caught:
        space.check(run)
    told = str(caught.value)
    assert "recipe: is the same for all trials" in told
    assert "media_cache: is the same for all trials" in told
    assert "text_reduction: has no effect where text_side_width is given" in told
    Space.parse({"kernel_gamma": "0.5,1"}).check(run)


def test_a_preset_of_another_input_is_refused():
    with pytest.raises(ConfigError, match=r"preset: 'vse_image' is not allowed.*'clip_vil'"):
        Space.parse({"preset": "text,vse_image"}).check(base())


def test_a_grid_is_that_of_scikit_learn():
    given = [{"lr": [1e-3, 1e-2], "reduction": [2, 4]}, {"pooling": ["mean"]}]
    points = Space.parse(given).grid()
    assert sorted(map(str, points)) == sorted(map(str, map(dict, ParameterGrid(given))))
    with pytest.raises(ConfigError, match="a grid needs choices"):
        Space.parse({"lr": "log:1e-4..1e-2"}).grid()


def test_points_depend_on_seed_and_number_alone():
    space = Space.parse({"lr": "log:1e-4..1e-2", "reduction": [2, 4, 8], "epochs": "int:2..10"})
    for draw in (space.random, space.quasi_random):
        points = [draw(3, number) for number in range(32)]
        assert points == [draw(3, number) for number in range(32)]
        assert points != [draw(4, number) for number in range(32)]
        assert {point["reduction"] for point in points} == {2, 4, 8}
        assert all(1e-4 <= point["lr"] <= 1e-2 for point in points)


def test_quasi_random_points_fill_the_space_evenly():
    space = Space.parse({"dropout": "0..0.5", "warmup": "0..0.8"})
    points = [space.quasi_random(0, number) for number in range(16)]
    for name, width in (("dropout", 0.5), ("warmup", 0.8)):
        assert {int(point[name] / width * 16) for point in points} == set(range(16))


def test_files_and_flags_meet_in_one_space(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("epochs: 3\nspace: {lr: '1e-3,1e-2', dropout: '0..0.5'}\n")
    (tmp_path / "space.yaml").write_text("lr: [0.1]\n")
    assert read_space(tmp_path / "run.yaml", None, ["lr=0.2"]) == {
        "space": {"lr": "0.2", "dropout": "0..0.5"}
    }
    assert read_space(tmp_path / "run.yaml", tmp_path / "space.yaml", []) == {
        "space": {"lr": [0.1]}
    }
    assert read_space(None, None, []) == {}
    with pytest.raises(ConfigError, match="give field=values"):
        read_space(None, None, ["lr"])


def test_fields_of_the_run_stand_beside_those_of_the_sweep():
    config = SweepConfig.build(
        {"data": {"train": "rows.tsv", "text": "a"}, "cache": "c", "out": "o", "space": {"lr": [1]}}
        | {"run": {"data": {"label": "b"}, "lr": 0.5}, "trials": 3}
    )
    assert (config.run.data.text, config.run.data.label, config.run.lr) == ("a", "b", 0.5)
    assert (config.out, config.trials) == (Path("o"), 3)
    assert isinstance(config.run, TextTrainConfig)


def test_the_task_decides_what_a_run_is():
    values = {"data": {"task": "retrieval", "train": "c.csv"}, "text_cache": "t", "out": "o"}
    config = SweepConfig.build(values | {"media_cache": "m", "space": {"lr": [1]}, "margin": 0.3})
    assert isinstance(config.run, TwoTowersTrainConfig)
    assert SweepConfig.build(config.model_dump(mode="json")) == config
    with pytest.raises(ConfigError, match=r"run.margin: .*(?s:.)*known: batch_size"):
        SweepConfig.build({"data": {"train": "r.tsv"}, "cache": "c", "margin": 1, **LEAST})
    with pytest.raises(ConfigError, match="unknown task 'riddles'; known: classification"):
        SweepConfig.build({"data": {"train": "r.tsv", "task": "riddles"}, "cache": "c", **LEAST})


def test_a_command_line_can_narrow_the_run():
    narrow = create_model("Narrow", __base__=SweepConfig, run=(TextTrainConfig, ...))
    config = narrow.build({"data": {"train": "rows.tsv"}, "cache": "c", "noise": 0.5, **LEAST})
    assert config.run.noise == 0.5
    assert SweepConfig.build(config.model_dump(mode="json")).run == config.run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "at least 2"),
        ({"workers": 2, "scheduler": "tcp://a:1"}, "not both"),
        ({"patience": 2}, "pruner none"),
        ({"run": {"data": {"fit_on_dev": True}}}, "leaves no dev split"),
        ({"kernel_keys": 5, "refit": "train+dev"}, "give kernel_weight"),
        ({"sampler": "annealing"}, "'tpe', 'random', 'grid' or 'qmc'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    values = {"data": {"train": "rows.tsv"}, "cache": "c", "out": "o", "space": {"lr": [1]}}
    with pytest.raises(ConfigError, match=message):
        SweepConfig.build(values | changes)
