"""Sweeps through the command line, from a cache to an exported trial."""

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny import WORDS, save_tiny

import cli
from pipeline.config import ConfigError
from pipeline.run import Run
from pipeline.sweep import SweepError


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.commands, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model's cache of sentences, and a sweep of four trials over it."""
    place = tmp_path_factory.mktemp("cli")
    save_tiny("bert", place / "model")
    words = itertools.islice(itertools.permutations(WORDS[:8], 3), 60)
    rows = [
        f"{('good', 'bad')[n % 2]} {' '.join(w)}\t{('good', 'bad')[n % 2]}"
        for n, w in enumerate(words)
    ]
    (place / "data.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    invoke("extract", place / "model", place / "cache", "--train", place / "data.tsv")
    (place / "run.yaml").write_text(
        f"data: {{train: {place / 'data.tsv'}, metrics: [accuracy]}}\ncache: {place / 'cache'}\n"
        "epochs: 3\ndevice: cpu\ntogether: 4\nspace: {dropout: 0..0.5}\n"
    )
    search = ("-s", "lr=log:1e-3..1e-1", "--sampler", "random", "--trials", 4)
    invoke("sweep", "--config", place / "run.yaml", "--out", place / "sweep", *search)
    return place


def test_file_and_flags_meet(place):
    told = json.loads((place / "sweep" / "sweep.json").read_text())["config"]
    assert (told["trials"], told["sampler"], told["run"]["epochs"]) == (4, "random", 3)
    assert [set(branch) for branch in told["space"]] == [{"lr", "dropout"}]


def test_the_same_command_or_resume_reads_it_again(place):
    told = json.loads(invoke("sweep", "--resume", "--out", place / "sweep", "--json").stdout)
    assert len(told["trials"]) == 4
    assert told["refit"]["reused"]


def test_a_trial_is_trained_again_from_its_name(place):
    results = json.loads((place / "sweep" / "results.json").read_text())
    trial = results["trials"][2]
    name = f"{place / 'sweep'}:2"
    invoke("train", "--from-trial", name, place / "two", "--epochs", 1)
    config = Run.open(place / "two").info["config"]
    assert {key: config[key] for key in trial["params"]} == trial["params"]
    assert config["epochs"] == 1
    with pytest.raises(SweepError, match="names no trial"):
        invoke("train", "--from-trial", place / "nowhere:2", place / "three")
    told = CliRunner().invoke(cli.commands, ["train", "--from-trial", name])
    assert "give the folder OUT" in told.output


def test_a_kept_trial_is_exported(place):
    best = json.loads((place / "sweep" / "results.json").read_text())["best"]
    invoke("export", f"{place / 'sweep'}:{best}", place / "exported", "--samples", 4)
    assert json.loads((place / "exported" / "parity_report.json").read_text())["passed"]
    with pytest.raises(SweepError, match="has the trials"):
        invoke("export", f"{place / 'sweep'}:99", place / "other")


def test_what_is_wrong_is_told_before_anything_runs(place):
    begin = ("sweep", "--config", place / "run.yaml", "--out", place / "wrong")
    with pytest.raises(ConfigError, match=r"lr: -1 is not allowed"):
        invoke(*begin, "-s", "lr=-1,1")
    with pytest.raises(ConfigError, match="no field of a run; known: batch_size"):
        invoke(*begin, "-s", "width=1,2")
    assert not (place / "wrong").exists()
