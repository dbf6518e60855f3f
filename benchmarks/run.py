"""The benchmarks that fit into ten minutes, one after the other: `make bench`.

Each runs in a process of its own and writes `benchmarks/results/<name>.json`. The others take
longer or need something of their own, and have commands of their own: `kill` (twenty kills),
`equivalence` (three families with real weights), `quality`, `retrieval_quality` and `labelled`
(metrics over seeds), `sweep` and `sweep_quality` (searches), `systems` and `retrieval_epoch` (the
published two-tower systems at full size), `plans` (their data sets priced), `faults` (what each
fault leads to), `zeros` (maps compressed), `storage_types` (what they cost), `compare` (another
checkout and this one, side by side).
"""

import subprocess
import sys

SHORT = (
    ("benchmarks.epoch", "--samples", "500"),
    ("benchmarks.extraction",),
    ("benchmarks.reading", "--gigabytes", "1"),
    ("benchmarks.minibatches", "--samples", "1000", "--repeats", "3"),
    ("benchmarks.writing",),
    ("benchmarks.tiers",),
    ("benchmarks.index",),
)


def main() -> int:
    """Run each benchmark; return 1 if one of them failed."""
    failed = [
        module
        for module, *options in SHORT
        if subprocess.run([sys.executable, "-m", module, *options], check=False).returncode
    ]
    for module in failed:
        print(f"{module} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
