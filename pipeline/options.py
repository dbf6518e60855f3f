"""Turns a stage's `Config` into command-line options, so that each field is described once.

A nested config's fields become options of the same command. Only values typed by the user reach
the config: what is left out comes from `--config FILE`, then from the field's default. Where a
field takes any system's data or training, `narrowed` makes it that of the task's system.
"""

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
import yaml
from click.core import ParameterSource
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from pipeline.config import Config, ConfigError, read_mapping
from pipeline.systems import DEFAULT_TASK, tasks, tasks_beside

C = TypeVar("C", bound=Config)
Command = Callable[..., Any]


def config_options(
    cls: type[Config], *, arguments: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    """Add `--config FILE` and one option for each field of `cls`.

    Args:
        cls: the stage's config.
        arguments: fields taken as positional arguments, in this order.
        without: fields that the command takes in a way of its own.
    """

    def decorate(command: Command) -> Command:
        leaves = dict(_leaves(cls)) | {
            name: field for name, field in cls.model_fields.items() if _nested(field) is None
        }  # of two fields of one name the outer one is meant, as in `_place`
        for name, field in reversed(leaves.items()):
            if name not in (*arguments, *without):
                command = _option(name, field)(command)
        command = click.option(
            "--config",
            "config_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="YAML or JSON file with any of these options; flags win over it.",
        )(command)
        for name in reversed(arguments):
            command = click.argument(name, required=False)(command)
        return command

    return decorate


def build_config(
    cls: type[C],
    context: click.Context,
    *,
    base: Mapping[str, Any] | None = None,
    **fixed: Any,
) -> C:
    """Build `cls` from the config file and the flags the user typed.

    Args:
        cls: the stage's config.
        context: of the command.
        base: values that the file and the flags win over.
        fixed: values that win over all.

    Raises:
        ConfigError: with every problem at once.
    """
    file = context.params.get("config_file")
    values: dict[str, Any] = dict(base or {}) | (read_mapping(file) if file else {})
    for name, value in context.params.items():
        if context.get_parameter_source(name) in (
            ParameterSource.COMMANDLINE,
            ParameterSource.ENVIRONMENT,
        ):
            _place(cls, values, name, value)
    return cls.build(values | fixed)


@cache
def narrowed(cls: type[C], **fields: type[Config]) -> type[C]:
    """Return `cls` with each of `fields` of a narrower class: `data=TextData`, `run=...`.

    Its values are those of `cls`, so every stage takes them.
    """
    own: dict[str, Any] = {
        name: (field, Field(description=cls.model_fields[name].description))
        for name, field in fields.items()
    }
    return create_model(cls.__name__, __base__=cls, __module__=cls.__module__, **own)


def chosen_task(arguments: Sequence[str]) -> str:
    """Return the task that command-line `arguments` name.

    `--task` says it, or else the file of `--config`, or the sweep of `--from-trial`; without any
    it is the usual one.
    """
    task, file = _value_of("--task", arguments), _value_of("--config", arguments)
    trial = _value_of("--from-trial", arguments)
    if trial is not None:
        file = f"{trial.rpartition(':')[0]}/sweep.json"
    if task is None and file is not None and Path(file).is_file():
        task = _task_of(read_mapping(Path(file)))
    return DEFAULT_TASK if task is None else str(task)


def task_note(task: str) -> str:
    """Return the sentences of a command's help on whose options it shows."""
    own = tasks_beside(task)
    others = [each for each in tasks() if each not in own]
    return (
        f"These are the options for the task{'s' * (len(own) > 1)} {', '.join(own)}. Other tasks "
        f"have options of their own, which --task NAME --help shows: {', '.join(others)}."
    )


def _task_of(values: Mapping[str, Any]) -> Any:
    """Return the `task` of a file's values, or that of their `data`, `run` or `config`, if any."""
    inner = (values.get(name) for name in ("data", "run", "config"))
    found = (_task_of(each) for each in inner if isinstance(each, dict))
    return values.get("task") or next((task for task in found if task), None)


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    found = None
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.partition("=")[2]
    return found


def _place(cls: type[BaseModel], values: dict[str, Any], name: str, value: Any) -> None:
    if name in cls.model_fields:
        values[name] = value
        return
    for outer, field in cls.model_fields.items():
        nested = _nested(field)
        if nested is not None and name in dict(_leaves(nested)):
            inner = values.setdefault(outer, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{outer} must be a mapping, not {inner!r}")
            _place(nested, inner, name, value)
            return


def _leaves(cls: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in cls.model_fields.items():
        nested = _nested(field)
        if nested is None:
            yield name, field
        else:
            yield from _leaves(nested)


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    annotation = _without_none(field.annotation)
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        kept = [option for option in get_args(annotation) if option is not type(None)]
        return kept[0] if len(kept) == 1 else str
    return annotation


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    annotation = _without_none(field.annotation)
    flag = "--" + name.replace("_", "-")
    help_text = " ".join((field.description or "").split())
    default = field.get_default(call_default_factory=False)
    if not field.is_required() and default not in (None, (), ""):
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        help_text += f"  [default: {shown}]"
    if annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help_text)
    settings: dict[str, Any] = {"type": annotation, "help": help_text, "default": None}
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is tuple and args[-1] is Ellipsis:
        settings |= {"type": _scalar(args[0]), "multiple": True}
    elif origin is tuple:
        settings |= {"type": _scalar(args[0]), "nargs": len(args)}
    else:
        settings["type"] = _scalar(annotation)
    return click.option(flag, name, **settings)


def _scalar(annotation: Any) -> Any:
    if get_origin(annotation) is dict:
        return _Mapping()
    if get_origin(annotation) is Literal:
        return _Choices([str(choice) for choice in get_args(annotation)])
    if isinstance(annotation, type) and issubclass(annotation, Path):
        return click.Path(path_type=Path)
    return annotation if annotation in (int, float, str) else str


class _Choices(click.Choice[str]):
    """Values to choose from; the config refuses another one, with all that is wrong beside it."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return `value` as it is."""
        return value


class _Mapping(click.ParamType[dict[str, Any]]):
    """A mapping in YAML or JSON: `{up: linear, eps: 1e-6}`."""

    name = "mapping"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Parse `value`, or fail with what was expected."""
        parsed = yaml.safe_load(value) if isinstance(value, str) else value
        if not isinstance(parsed, dict):
            self.fail(f"{value!r} is no mapping such as '{{up: linear}}'", param, ctx)
        return parsed
