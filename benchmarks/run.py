"""The benchmarks that fit into ten minutes, one after the other: `make bench`.

Each runs in a process of its own and writes `benchmarks/results/<name>.json`. Three more take
longer and have commands of their own: `benchmarks.kill` (twenty kills), `benchmarks.equivalence`
(three families with real weights) and `benchmarks.quality` (metrics over seeds).
"""

import subprocess
import sys

SHORT = (
    ("benchmarks.epoch", "--samples", "500"),
    ("benchmarks.extraction",),
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
