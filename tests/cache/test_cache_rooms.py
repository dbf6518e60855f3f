"""Who in the package may import whom, and what importing it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import cache

ROOT = Path(cache.__file__).parent
ALLOWED = {
    "format": set(),
    "storage": {"format"},
    "writing": {"format", "storage"},
    "reading": {"format", "storage"},
    "loading": {"format", "storage", "reading"},
    "tools": {"format", "storage", "writing", "reading", "loading"},
}


def imported_rooms(file: Path) -> set[str]:
    nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)]
    names = {(n.module or "").split(".")[0] for n in nodes if n.level == 2}
    return names & ALLOWED.keys()


def test_rooms_import_one_way():
    assert {path.parent.name for path in ROOT.glob("*/*.py")} == ALLOWED.keys()
    for room, allowed in ALLOWED.items():
        for file in (ROOT / room).glob("*.py"):
            assert imported_rooms(file) <= allowed, file


def test_importing_the_package_loads_nothing_that_only_some_work_needs():
    code = "import sys, cache; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"dask", "pandas", "pyarrow", "rich", "zarr", "obstore", "transformers", "optuna"}
    assert not heavy & set(run.stdout.split())
