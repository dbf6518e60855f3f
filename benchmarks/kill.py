"""`kill -9` at random moments of an extraction, resumed each time: is the cache the same?

    python -m benchmarks.kill [--kills 20]

Runs `cli.py extract` on MiniLM and the rated tweets, once undisturbed and once killed over and
over, and compares every byte of the two caches; one that is finished before a kill is begun anew.
Small blocks make many shards, so that kills fall into writing as well as computing.
"""

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.common import report
from benchmarks.sentences import WORK
from pipeline.demo.assets import minilm, sentiment


def command(out: Path) -> list[str]:
    """Return the command that extracts the tweets into `out`."""
    tweets = sentiment(WORK) / "tweets_GroundTruth.txt"
    options = ["--train", tweets, "--no-header", "--text", "2", "--label", "1", "--id", "0"]
    options += ["--task", "regression", "--encoding-errors", "replace", "--block-tokens", "160"]
    return [sys.executable, "cli.py", "extract", str(minilm(WORK)), str(out), *map(str, options)]


def shards(cache: Path) -> int:
    """Return how many shards the ledger of `cache` records."""
    ledger = cache / "ledger.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder`, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def undisturbed(out: Path) -> tuple[float, float]:
    """Extract into `out`; return the seconds until its metadata stood there, and until the end."""
    start = time.perf_counter()
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / "zarr.json").exists():
        time.sleep(0.01)
    begin = time.perf_counter() - start
    if process.wait():
        raise RuntimeError(f"the undisturbed extraction failed: {' '.join(command(out))}")
    return begin, time.perf_counter() - start


@click.command()
@click.option("--kills", default=20, show_default=True, help="Times to kill.")
@click.option("--seed", default=0, show_default=True, help="Seed of the moments.")
def main(kills: int, seed: int) -> None:
    """Kill an extraction over and over; fail if the final cache differs in a byte."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        begin, end = undisturbed(whole)
        landed: list[int] = []
        anew, same = 0, True
        while len(landed) < kills:
            process = subprocess.Popen(
                command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(moments.uniform(begin - 0.5, begin + 2 * (end - begin) / kills))
            if process.poll() is not None:  # finished before it could be killed
                same &= digests(whole) == digests(killed)
                shutil.rmtree(killed)
                anew += 1
                continue
            process.send_signal(signal.SIGKILL)
            process.wait()
            landed.append(shards(killed))
        last = subprocess.run(command(killed), check=True, capture_output=True, text=True).stdout
        same &= digests(whole) == digests(killed)
        total = len(digests(whole))
    lines = [
        f"{kills} kills -9; shards finished after each: {', '.join(map(str, landed))}",
        f"finished and begun anew: {anew} times; last run: {last.splitlines()[1]}",
        f"{total} files, identical to the uninterrupted cache each time: {same}",
    ]
    report("kill", {"kills": kills, "shards_after_kill": landed, "identical": same}, lines)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
