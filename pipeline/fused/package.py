"""The source files of an exported folder, which must load where this project is not installed.

transformers copies a model's file and, recursively, the files it imports with `from .name import`
from the same folder; it follows neither sub-packages nor `from . import name`. So the needed files
of `unipt/` are shipped flat and unchanged, and the one rewriting is `from unipt.name import` to
`from .name import` in the modelling file. Cost: the closure is about ten small files.
"""

import ast
import re
from pathlib import Path

import unipt
from pipeline.errors import PipelineError

HERE = Path(__file__).parent
ENTRY_FILES = ("configuration_unipt.py", "modeling_unipt.py")
AUTO_MAP = {
    "AutoConfig": "configuration_unipt.UniPTConfig",
    "AutoModelForSequenceClassification": "modeling_unipt.UniPTForSequenceClassification",
}


class PackageError(PipelineError, RuntimeError):
    """The side network's sources cannot be shipped beside a model."""


def source_files() -> dict[str, str]:
    """Return file name -> text of everything an exported folder must hold to load.

    Raises:
        PackageError: a file imports in a way that transformers' loader does not follow.
    """
    files = {name: _flatten((HERE / name).read_text(encoding="utf-8")) for name in ENTRY_FILES}
    wanted = [name for text in files.values() for name in relative_imports(text)]
    root = Path(unipt.__file__).parent
    while wanted:
        name = f"{wanted.pop()}.py"
        if name not in files:
            files[name] = (root / name).read_text(encoding="utf-8")
            wanted += relative_imports(files[name], source=name)
    return files


def relative_imports(text: str, source: str = "the modelling file") -> list[str]:
    """Return the names of the neighbouring modules that a source text imports.

    Raises:
        PackageError: an import is not of the form `from .name import thing`.
    """
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            absolute = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            absolute = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            if node.level != 1 or not node.module or "." in node.module:
                raise PackageError(f"{source}, line {node.lineno}: write `from .name import thing`")
            names.append(node.module)
            continue
        else:
            continue
        if any(name.split(".")[0] in {"unipt", "cache", "pipeline"} for name in absolute):
            raise PackageError(
                f"{source} imports {absolute}: a shipped file cannot need this project"
            )
    return names


def _flatten(text: str) -> str:
    return re.sub(r"^from unipt\.(\w+) import", r"from .\1 import", text, flags=re.MULTILINE)
