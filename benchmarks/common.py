"""What every benchmark prints: the machine, the versions, medians of interleaved repetitions."""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "results"))
"""Where `report` puts what a run measured: committed with hardware and date, or the folder that the
environment variable BENCHMARK_RESULTS names."""


def machine() -> dict[str, Any]:
    """Describe the hardware and the versions behind a figure."""
    names = ("torch", "transformers", "zarr", "numpy", "scikit-learn", "crc32c")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def interleaved(
    work: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time each alternative `repeats` times, in turn A B A B, after one unmeasured round each.

    `before` is called before each round and each repetition, and not measured.

    Returns:
        Seconds of every repetition, by name.
    """
    for run in work.values():
        before()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            before()
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize() -> None:
    """Wait for the accelerator, so that a clock reads finished work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def paired_ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios of neighbouring repetitions: robust on a noisy machine."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def report(name: str, figures: dict[str, Any], lines: list[str]) -> None:
    """Print `lines` under the machine's description and save `figures` as JSON."""
    about = machine()
    print(f"# {name}")
    versions = ", ".join(f"{key} {value}" for key, value in about["versions"].items())
    print(
        f"{about['date']}, {about['processor']}, {about['cores']} cores, "
        f"{about['memory_gb']} GB, GPU: {about['gpu'] or 'none'}; {versions}"
    )
    print("\n".join(lines), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    target = RESULTS / f"{name}.json"
    target.write_text(json.dumps({"machine": about, **figures}, indent=1) + "\n")


def reported(name: str, part: str, **same: Any) -> dict[str, Any]:
    """Return what earlier calls of a benchmark have reported, so that it can be run in parts.

    Args:
        name: of the benchmark.
        part: of its figures, which maps names to rows.
        same: figures that must be equal, or nothing is taken over.
    """
    file = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    wanted = json.loads(json.dumps(same))
    rows: dict[str, Any] = found.get(part, {}) if wanted.items() <= found.items() else {}
    return rows


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()
