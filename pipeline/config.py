"""The base of every stage's configuration: typed, frozen, strict, and the source of `--help`.

Each field carries one sentence with its unit as its description. A file and command-line flags
meet in one config; all errors of a config are reported together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.errors import PipelineError


class ConfigError(PipelineError, ValueError):
    """A configuration is unusable; the message lists every problem found.

    Attributes:
        problems: one line each, where a whole mapping was checked.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class Config(BaseModel):
    """Frozen, keyword-only configuration without I/O in its constructor."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def contradictions(self) -> list[str]:
        """Return what speaks against these values together, a sentence each; subclasses add."""
        return []

    @model_validator(mode="after")
    def _agreed(self) -> Self:
        if found := self.contradictions():
            raise ValueError("; ".join(found))
        return self

    @classmethod
    def build(cls, values: dict[str, Any]) -> Self:
        """Validate `values`.

        Raises:
            ConfigError: listing every unknown, missing or unusable value at once.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _explained(cls, error) from error

    @classmethod
    def from_file(cls, path: Path, **overrides: Any) -> Self:
        """Read a YAML (or JSON) mapping; `overrides` win over the file.

        Raises:
            ConfigError: the file is missing, not a mapping, or holds unusable values.
        """
        return cls.build(read_mapping(path) | overrides)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON mapping from `path`; raise `ConfigError` if it is not one."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the config file {path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold a mapping of names to values, not {type(values).__name__}"
        )
    return values


def _explained(cls: type[BaseModel], error: ValidationError) -> ConfigError:
    problems: list[str] = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"]) or "(whole)"
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError) and cause.problems:  # of a mapping within this one
            problems += [f"{name}.{inner}" for inner in cause.problems]
            continue
        given = "" if problem["type"] == "missing" else f" (given: {problem['input']!r})"
        known = ""
        if problem["type"] == "extra_forbidden":
            known = f"; known: {', '.join(sorted(cls.model_fields))}"
        problems.append(f"{name}: {problem['msg']}{given}{known}")
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{len(problems)} problem(s) in {cls.__name__}:\n{lines}", problems)
