"""Options of the task that is chosen: by its flag, its file, or the sweep of a trial."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from pipeline.config import Config, ConfigError
from pipeline.extract import ExtractConfig
from pipeline.options import chosen_task, narrowed
from pipeline.planning.config import PlanConfig
from pipeline.systems import DEFAULT_TASK, SYSTEMS, system_of


def test_the_task_is_that_of_the_flag_the_file_or_the_sweep(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 1\ndata:\n  task: coco\n")
    (tmp_path / "sweep.json").write_text(
        json.dumps({"config": {"run": {"data": {"task": "msvd"}}}})
    )
    assert chosen_task([]) == DEFAULT_TASK
    assert chosen_task(["a", "--task", "mnli"]) == "mnli"
    assert chosen_task(["--task=mnli", "--config", str(file)]) == "mnli"
    assert chosen_task(["--config", str(file)]) == "coco"
    assert chosen_task(["--from-trial", f"{tmp_path}:3", "out"]) == "msvd"
    assert chosen_task(["--config", str(tmp_path / "none.yaml")]) == DEFAULT_TASK


class Outer(Config):
    """A config of any system's data."""

    data: Any
    """What is read."""
    size: int = Field(default=1, ge=1)
    """How much."""


@pytest.mark.parametrize("names", SYSTEMS.values(), ids=lambda names: names[0])
def test_a_narrowed_config_is_the_wide_one_with_the_fields_of_a_system(
    names: tuple[str, ...],
) -> None:
    system = system_of(names[0])
    for cls in (ExtractConfig, PlanConfig):
        narrow = narrowed(cls, data=system.Data)
        assert narrow is narrowed(cls, data=system.Data)
        assert issubclass(narrow, cls)
        assert narrow.model_fields["data"].annotation is system.Data
        assert narrow.model_fields["data"].description == cls.model_fields["data"].description
        values = {"backbone": "x", "out": "y", "data": {"task": names[0], "train": "z"}}
        assert dict(narrow.build(values)) == dict(cls.build(values))
        assert narrow.build(values).model_dump() == cls.build(values).model_dump()


def test_all_problems_of_a_narrowed_config_are_told() -> None:
    narrow = narrowed(Outer, data=system_of(DEFAULT_TASK).Data)
    expected = r"(?s)3 problem\(s\) in Outer.*data\.train.*data\.colour.*size"
    with pytest.raises(ConfigError, match=expected):
        narrow.build({"data": {"colour": 1}, "size": 0})
