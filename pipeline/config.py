"""The base of every stage's configuration: typed, frozen, strict, and the source of `--help`.

Each field carries one sentence with its unit as its description. A file and command-line flags
meet in one config; all errors of a config are reported together.
"""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import PipelineError


class ConfigError(PipelineError, ValueError):
    """A configuration is unusable; the message lists every problem found."""


class Config(BaseModel):
    """Frozen, keyword-only configuration without I/O in its constructor."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def build(cls, values: dict[str, Any]) -> Self:
        """Validate `values`.

        Raises:
            ConfigError: listing every unknown, missing or unusable value at once.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_explain(cls, error)) from error

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


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"]) or "(whole)"
        given = "" if problem["type"] == "missing" else f" (given: {problem['input']!r})"
        lines.append(f"  {name}: {problem['msg']}{given}")
        if problem["type"] == "extra_forbidden":
            lines[-1] += f"; known: {', '.join(sorted(cls.model_fields))}"
    return f"{len(lines)} problem(s) in {cls.__name__}:\n" + "\n".join(lines)
