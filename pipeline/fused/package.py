"""The source files of an exported folder, which must load where this project is not installed.

transformers copies a model's file and, recursively, the files it imports with `from .name import`
from the same folder; it follows neither sub-packages nor `from . import name`. So the needed files
are shipped flat: those of `unipt/` and of this folder under their own names, others with their
folder's name before theirs (`media/images.py` as `media_images.py`). The one rewriting is that of
the imports among them. Cost: the closure is about 25 small files.
"""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import cache
import pipeline
import unipt
from pipeline.errors import PipelineError
from pipeline.fused.modeling_unipt import UniPTModel

ROOTS = {module.__name__: Path(module.__path__[0]) for module in (cache, pipeline, unipt)}
OURS = (*ROOTS, "cli")
HERE = "pipeline.fused"
SHIPPABLE = (
    *("unipt", HERE, f"{HERE}.api", "pipeline.media", "pipeline.backbones.convnets"),
    *(
        "pipeline.errors",
        "pipeline.backbones.shaping",
        "pipeline.backbones.pooling",
        "cache.format.quantize",
    ),
)
"""Packages, and single modules, whose files may stand beside a model."""
_IMPORT = re.compile(r"^(\s*from )([\w.]+)( import)", re.MULTILINE)


class PackageError(PipelineError, RuntimeError):
    """A source file cannot be shipped beside a model."""


def api_class(api: str) -> type[UniPTModel]:
    """Return the class of an API."""
    found: type[UniPTModel] = import_module(f"{HERE}.api.{api}").API
    return found


def auto_map(api: str) -> dict[str, str]:
    """Return what config.json says of the classes that load an exported folder."""
    return {
        "AutoConfig": "configuration_unipt.UniPTConfig",
        api_class(api).auto: f"{flat_name(f'{HERE}.api.{api}')}.{api_class(api).__name__}",
    }


def source_files(api: str) -> dict[str, str]:
    """Return file name -> text of everything an exported folder must hold to load.

    Raises:
        PackageError: a file imports in a way that transformers' loader does not follow, or
            something that cannot be shipped.
    """
    wanted = [f"{HERE}.configuration_unipt", f"{HERE}.api.{api}"]
    files: dict[str, str] = {}
    while wanted:
        module = wanted.pop()
        name = f"{flat_name(module)}.py"
        if name not in files:
            text = _path(module).read_text(encoding="utf-8")
            files[name] = flatten(text, module)
            wanted += needed_modules(text, module)
    return files


def flat_name(module: str) -> str:
    """Return the name in an exported folder, without suffix, of a module of ours."""
    package, _, name = module.rpartition(".")
    return name if package in ("unipt", HERE) else f"{package.rpartition('.')[2]}_{name}"


def needed_modules(text: str, module: str) -> list[str]:
    """Return the modules of ours, by their full names, that the source of `module` imports.

    Raises:
        PackageError: an import is not of the form `from .name import thing`, or is of something
            that cannot be shipped.
    """
    return [found for _, found in _imports(text, module)]


def flatten(text: str, module: str) -> str:
    """Return the source of `module` with the imports of ours made `from .name import`."""
    names = dict(_imports(text, module))

    def rewrite(match: re.Match[str]) -> str:
        found = names.get(match[2])
        return match[0] if found is None else f"{match[1]}.{flat_name(found)}{match[3]}"

    return _IMPORT.sub(rewrite, text)


def _imports(text: str, module: str) -> Iterator[tuple[str, str]]:
    """Yield (what the source says, full name) of the modules of ours that it imports."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in OURS:
                    raise PackageError(
                        f"{module}, line {node.lineno}, imports {alias.name}: a shipped file "
                        "cannot need this project; write `from .name import thing`"
                    )
        elif isinstance(node, ast.ImportFrom) and node.level:
            if node.level != 1 or not node.module or "." in node.module:
                raise PackageError(f"{module}, line {node.lineno}: write `from .name import thing`")
            full = f"{module.rpartition('.')[0]}.{node.module}"
            yield f".{node.module}", _shippable(full, module)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            yield str(node.module), _shippable(str(node.module), module)


def _shippable(module: str, source: str) -> str:
    package = module.rpartition(".")[0]
    if not {module, package} & set(SHIPPABLE) or not _path(module).is_file():
        raise PackageError(
            f"{source} imports {module}: a shipped file cannot need this project beyond the files "
            f"of {', '.join(SHIPPABLE)}"
        )
    return module


def _path(module: str) -> Path:
    root, *rest = module.split(".")
    return ROOTS[root].joinpath(*rest).with_suffix(".py")
