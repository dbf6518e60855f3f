"""What may know what: imports run one way, and only a system's own files know which system it is.

The source is parsed and not run, so that what is broken elsewhere hides nothing here.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.systems import SYSTEMS, system_of

ROOT = Path(__file__).parents[2]
SYSTEM_FILES = {f"pipeline.systems.{place.partition('.')[0]}" for place in SYSTEMS}

# --- exceptions, each with its reason

CIRCLES: dict[frozenset[str], str] = {}
"""Modules that import each other -> why they may."""
UPWARDS: dict[str, str] = {}
""""importer -> imported" -> why it may."""
INDEX, IMAGE, RANGE = "the kind of an index", "how an image is stored", "a distribution"
TAP, READER = "the kind of a tap", "a reader names the towers and tasks of its own data"
API = "an API of exported models, which its system names"
BRANCHES = {
    "pipeline/index.py: config.kind == 'auto'": INDEX,
    "pipeline/media/images.py: kind == 'animated'": IMAGE,
    "pipeline/media/processors.py: kind == 'shortest'": "how an image is resized",
    "pipeline/media/processors.py: kind != 'shortest'": "how an image is resized",
    "pipeline/sweep/axis.py: kind == 'uniform'": RANGE,
    "pipeline/sweep/axis.py: kind in ('loguniform', 'reciprocal')": RANGE,
    "pipeline/sweep/axis.py: kind == 'randint'": RANGE,
    "pipeline/planning/trial.py: alike[-1].kind == 'tokens'": TAP,
    "pipeline/planning/trial.py: tap.kind == 'tokens'": TAP,
    "pipeline/inputs.py: modality == 'video'": "what a modality's input is",
    "pipeline/inputs.py: modality == 'image'": "what a modality's input is",
    "pipeline/reading/captioned/dataset.py: tower == 'text'": READER,
    "pipeline/reading/captioned/dataset.py: tower != 'text'": READER,
    "pipeline/reading/config.py: self.kind == 'regression'": READER,
    "pipeline/fused/api/retrieval.py: 'text' in towers": API,
    "pipeline/fused/api/sequence_classification.py: isinstance(side, SideClassifier)": API,
}
""""file: expression" -> why it may."""


class Import(NamedTuple):
    """One import of a module, anywhere in a file."""

    importer: str
    imported: str
    line: int


def name_of(file: Path) -> str:
    """Return the module that a file is."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_of(*packages: str) -> dict[str, Path]:
    """Return the files of packages, by module."""
    found: dict[str, Path] = {}
    for package in packages:
        place = ROOT / package
        files = [place.with_suffix(".py")] if not place.is_dir() else sorted(place.rglob("*.py"))
        found |= {name_of(file): file for file in files}
    return found


FILES = files_of("cli", "pipeline", "cache", "unipt")
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def imports_of(name: str) -> Iterator[Import]:
    """Yield what a module imports: at its top, in functions, for types, and by name."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(name, node)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(name, whole if whole in FILES else base, node.lineno)
        elif isinstance(node, ast.Call) and _last(node.func) == "import_module":
            for each in node.args[:1]:
                if isinstance(each, ast.Constant):
                    yield Import(name, str(each.value), node.lineno)


def _absolute(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = name.split(".")
    if FILES[name].name != "__init__.py":
        package = package[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def _last(expression: ast.expr) -> str | None:
    """Return the last name of an expression: `x` of `x`, `a.x`, `a["x"]`, `a.get("x")`."""
    if isinstance(expression, ast.Name):
        return expression.id
    if isinstance(expression, ast.Attribute):
        return expression.attr
    if isinstance(expression, ast.Subscript) and isinstance(expression.slice, ast.Constant):
        return str(expression.slice.value)
    if isinstance(expression, ast.Call):
        if isinstance(expression.func, ast.Attribute) and expression.func.attr == "get":
            key = expression.args[0] if expression.args else None
            return str(key.value) if isinstance(key, ast.Constant) else None
        if _last(expression.func) in ("set", "str", "tuple", "list") and len(expression.args) == 1:
            return _last(expression.args[0])
    return None


def within(name: str, *packages: str) -> bool:
    """Whether a module is one of these, or in one of them."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def shown(name: str, line: int) -> str:
    """Return a place as file:line."""
    return f"{FILES[name].relative_to(ROOT)}:{line}"


# --- systems


def test_no_module_outside_the_systems_imports_a_system() -> None:
    found = [
        f"{shown(name, each.line)} imports {each.imported}"
        for name in FILES
        if not within(name, "pipeline.systems")
        for each in imports_of(name)
        if within(each.imported, *SYSTEM_FILES)
    ]
    assert not found, "\n".join(found)


def test_no_system_imports_another() -> None:
    found = [
        f"{shown(name, each.line)} imports {each.imported}"
        for name in SYSTEM_FILES
        for each in imports_of(name)
        if within(each.imported, *SYSTEM_FILES)
    ]
    assert not found, "\n".join(found)


NAMES = {"task", "kind", "system", "tower", "modality", "method"}
NAMES |= {f"{name}s" for name in NAMES} | {"modalities"}
FREE = ("pipeline.systems", "pipeline.tasks", "pipeline.backbones", "pipeline.reading.formats")
"""Where a task, a tower, a system or a modality may be told apart by name."""


def system_classes() -> set[str]:
    """Return the names of the classes that only one system has."""
    own = {
        node.name
        for name in SYSTEM_FILES
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.ClassDef)
    }
    systems = [system_of(tasks[0]) for tasks in SYSTEMS.values()]
    shared = {each.__name__ for s in systems for each in (s.Data, s.Train, s.Model)}
    return own | shared


def branches(name: str, classes: set[str]) -> Iterator[tuple[int, str]]:
    """Yield line and text of each expression that tells tasks, towers or systems apart."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(_last(side) in NAMES for side in sides) and any(map(_literal, sides)):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Match) and _last(node.subject) in NAMES:
            patterns = [part for case in node.cases for part in ast.walk(case.pattern)]
            if any(isinstance(part, ast.MatchValue) and _literal(part.value) for part in patterns):
                yield node.lineno, f"match {ast.unparse(node.subject)}"
        elif isinstance(node, ast.Call) and _last(node.func) in ("isinstance", "issubclass"):
            parts = [each for each in ast.walk(node.args[1]) if isinstance(each, ast.expr)]
            if any(_last(part) in classes for part in parts):
                yield node.lineno, ast.unparse(node)


def _literal(expression: ast.expr) -> bool:
    """Whether an expression is a text, or a collection of texts."""
    if isinstance(expression, ast.Tuple | ast.Set | ast.List):
        return any(_literal(element) for element in expression.elts)
    return isinstance(expression, ast.Constant) and isinstance(expression.value, str)


def test_no_stage_asks_which_system_it_has() -> None:
    classes = system_classes()
    found = {
        f"{FILES[name].relative_to(ROOT).as_posix()}: {text}": shown(name, line)
        for name in FILES
        if within(name, "cli", "pipeline") and not within(name, *FREE)
        for line, text in branches(name, classes)
    }
    new = [f"{place}: {text}" for text, place in found.items() if text not in BRANCHES]
    assert not new, "\n".join(sorted(new))
    gone = sorted(BRANCHES.keys() - found.keys())
    assert not gone, f"no longer there, take them out of BRANCHES: {gone}"


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("if config.data.task == 'retrieval': pass", 1),
        ("if 'image' != modality: pass", 1),
        ("x = task in ('a', 'b')", 1),
        ("x = [t for t in y if t.kind not in {'a'}]", 1),
        ("x = info['task'] == 'a'", 1),
        ("x = info.get('kind', 'b') == 'a'", 1),
        ("x = set(run.towers) == {'first', 'second'}", 1),
        ("match run.system:\n    case 'a': pass", 1),
        ("match run.system:\n    case 'a' | 'b': pass", 1),
        ("isinstance(data, CaptionData)", 1),
        ("isinstance(data, (config.CaptionData, int))", 1),
        ("x = task == other.task", 0),
        ("x = name == 'a'", 0),
        ("x = task in names", 0),
        ("match run.system:\n    case None: pass", 0),
        ("isinstance(data, DataConfig)", 0),
    ],
)
def test_the_check_finds_what_it_looks_for(
    source: str, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TREES, "made", ast.parse(source))
    assert len(list(branches("made", {"CaptionData"}))) == wanted


# --- layers


def test_the_cache_knows_nothing_of_the_pipeline_and_the_models() -> None:
    found = [
        f"{shown(name, each.line)} imports {each.imported}"
        for name in FILES
        if within(name, "cache")
        for each in imports_of(name)
        if within(each.imported, "pipeline", "unipt", "cli")
    ]
    assert not found, "\n".join(found)


def test_the_models_import_torch_alone() -> None:
    found = [
        f"{shown(name, each.line)} imports {each.imported}"
        for name in FILES
        if within(name, "unipt")
        for each in imports_of(name)
        if not within(each.imported, "torch", "unipt")
        and each.imported.split(".")[0] not in sys.stdlib_module_names
    ]
    assert not found, "\n".join(found)


STAGES = (
    *("plan", "extract", "train", "evaluate", "probe", "predict", "export"),
    *("report", "index", "search", "estimators", "options", "commands"),
)
LAYERS: tuple[tuple[str, ...], ...] = (
    ("pipeline.errors", "pipeline.places", "pipeline.console", "pipeline.processes",
     "pipeline.extras", "pipeline.selection", "pipeline.config", "pipeline.inputs"),
    ("pipeline.data", "pipeline.media"),
    ("pipeline.reading", "pipeline.backbones"),
    ("pipeline.tasks",),
    ("pipeline.systems",),
    ("pipeline.run",),
    ("pipeline.training",),
    ("pipeline.fused", "pipeline.extraction", "pipeline.planning", "pipeline.gallery"),
    tuple(f"pipeline.{stage}" for stage in STAGES),
    ("pipeline.sweep",),  # trains and draws by the stages of one run
    ("pipeline.demo",),  # runs the stages one after another
    ("cli",),
)  # fmt: skip
"""From the lowest; a module imports its own layer and those below."""


def layer_of(name: str) -> int | None:
    """Return the layer of a module; None for the package `pipeline` itself."""
    return next((n for n, names in enumerate(LAYERS) if within(name, *names)), None)


def graph() -> dict[str, set[str]]:
    """Return the modules of this project that each one imports, anywhere in its file."""
    found: dict[str, set[str]] = {}
    for name in FILES:
        found[name] = {each.imported for each in imports_of(name) if each.imported in FILES} - {
            name
        }
    return found


def test_every_module_has_a_layer() -> None:
    lost = [name for name in FILES if within(name, "pipeline", "cli") and layer_of(name) is None]
    assert lost == ["pipeline"]


def test_imports_run_one_way() -> None:
    found = {}
    for name in FILES:
        own = layer_of(name)
        for each in imports_of(name):
            other = layer_of(each.imported)
            if own is not None and other is not None and other > own:
                found[f"{name} -> {each.imported}"] = shown(name, each.line)
    new = [f"{place}: {text}" for text, place in found.items() if text not in UPWARDS]
    assert not new, "\n".join(sorted(new))
    gone = sorted(UPWARDS.keys() - found.keys())
    assert not gone, f"no longer there, take them out of UPWARDS: {gone}"


def circles(edges: Mapping[str, Iterable[str]]) -> list[frozenset[str]]:
    """Return the groups of modules that import each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[frozenset[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges.get(name, ()):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(frozenset(group))

    for name in edges:
        if name not in index:
            visit(name)
    return found


def test_no_modules_import_each_other() -> None:
    found = {group for group in circles(graph()) if group not in CIRCLES}
    assert not found, "\n".join(", ".join(sorted(group)) for group in found)


def test_circles_are_found() -> None:
    assert circles({"a": "b", "b": "c", "c": "a", "d": "a"}) == [frozenset("abc")]
    assert circles({"a": "bc", "b": "c", "c": ""}) == []
