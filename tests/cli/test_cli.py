"""The command line through its entry point: the whole way, its options, its errors."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny import save_tiny

import cli
from pipeline.systems import SYSTEMS, tasks

ROOT = Path(cli.__file__).parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def write_data(path: Path, count: int = 60) -> Path:
    """Write `count` distinct sentences whose first word is their label."""
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree"]
    triples = itertools.product(words, repeat=4)
    rows = []
    for number, triple in enumerate(itertools.islice(triples, count)):
        label = ("good", "bad")[number % 2]
        rows.append(f"{label} {' '.join(triple)}\t{label}")
    path.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    return path


def invoke(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli.commands, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, check=False, **settings
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, data, and what the commands made of them."""
    place = tmp_path_factory.mktemp("cli")
    save_tiny("bert", place / "model")
    write_data(place / "data.tsv")
    data = ["--train", place / "data.tsv"]
    invoke("extract", place / "model", place / "cache", *data)
    invoke("train", place / "cache", place / "run", *data, "--epochs", 2, "--device", "cpu")
    invoke("evaluate", place / "run")
    return place


@pytest.fixture(scope="module")
def exported(place: Path) -> Path:
    """The run as an ordinary model."""
    invoke("export", place / "run", place / "out")
    return place / "out"


def test_the_parts_of_the_whole_way_are_there(place):
    assert (place / "cache" / "COMPLETE.json").is_file()
    assert (place / "run" / "evaluation_test.json").is_file()


def test_an_export_agrees_with_its_run(exported):
    assert json.loads((exported / "parity_report.json").read_text())["passed"]


def test_plan_prints_the_bytes_that_extraction_wrote(place):
    planned = json.loads(
        invoke(
            *("plan", place / "model", "--out", place / "none", "--trial-seconds", "0.1"),
            *("--train", place / "data.tsv", "--json"),
        ).stdout
    )
    written = sum(f.stat().st_size for f in (place / "cache").rglob("*") if f.is_file())
    assert planned["total_bytes"] == written
    assert not (place / "none").exists()


def test_inspect_tells_where_the_cache_came_from(place):
    told = json.loads(invoke("inspect", place / "cache", "--json").stdout)
    assert told["complete"]
    assert told["provenance"]["backbone"] == str(place / "model")
    assert "complete" in invoke("inspect", place / "cache").stdout


def test_verify_fails_on_a_flipped_byte(place, tmp_path):
    assert "every checksum agrees" in invoke("verify", place / "cache").stdout
    copy = tmp_path / "cache"
    subprocess.run(["cp", "-r", place / "cache", copy], check=True)
    shard = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    assert str(shard) in invoke("verify", copy, status=1).stdout


def test_probe_stands_beside_the_run(place):
    data = ["--train", place / "data.tsv"]
    shown = invoke("train", place / "cache", place / "run", *data, "--probe", "all").stdout
    assert "accuracy" in shown
    assert (place / "run" / "probe_all.json").is_file()


def test_report_draws_pictures(place):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    pictures = invoke("report", place / "run").stdout.split()
    assert pictures
    assert all(Path(picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_config_file_and_flags_meet_and_flags_win(place):
    config = place / "run.yaml"
    config.write_text(f"epochs: 1\nlr: 0.1\ndata:\n  train: {place / 'data.tsv'}\n")
    invoke("train", place / "cache", place / "other", "--config", config, "--lr", "0.01")
    used = json.loads((place / "other" / "run.json").read_text())["config"]
    assert (used["epochs"], used["lr"]) == (1, 0.01)


def test_predict_labels_standard_input(exported):
    done = run("predict", exported, input="good cat\nbad dog\n")
    assert done.returncode == 0, done.stderr
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 2
    assert "2 texts labelled" in done.stderr


def test_errors_are_one_message_without_a_traceback(place):
    done = run("inspect", place / "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no cache in")
    assert "Traceback" not in done.stderr


def test_every_problem_of_a_config_is_told_at_once(place):
    done = run(
        *("train", place / "cache", place / "bad", "--train", place / "data.tsv"),
        *("--epochs", "0", "--lr", "-1", "--preset", "nonsense"),
    )
    assert done.returncode == 2
    for name in ("epochs", "lr", "preset"):
        assert name in done.stderr


EXTRAS = ("transformers", "tokenizers", "dask", "distributed", "optuna", "PIL", "pyarrow", "pandas")
WITHOUT = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in {extras!r}
        return None if hidden else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv[0] = "unipt"
"""


def without_extras(*arguments: object, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process where nothing that an extra brings is to be found."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(extras=EXTRAS) + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_training_needs_no_extra(place):
    run_cli = "import cli; cli.main()"
    data = ["--train", place / "data.tsv", "--epochs", "1"]
    done = without_extras("train", place / "cache", place / "pure", *data, code=run_cli)
    assert done.returncode == 0, done.stderr
    done = without_extras("evaluate", place / "pure", code=run_cli)
    assert done.returncode == 0, done.stderr


def test_the_library_needs_torch_only():
    code = (
        "import torch, numpy; before = set(sys.modules)\n"
        "import unipt; own = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "third = own - set(sys.stdlib_module_names) - {'unipt'}\nassert not third, third"
    )
    done = without_extras(code=code)
    assert done.returncode == 0, done.stderr


def test_a_missing_extra_is_named_with_the_command_that_brings_it(place):
    run_cli = "import cli; cli.main()"
    data = ["--train", place / "data.tsv"]
    done = without_extras("extract", place / "model", place / "none", *data, code=run_cli)
    assert done.returncode == 1
    assert "pip install 'unipt[extract]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(place, tmp_path):
    data = write_data(tmp_path / "many.tsv", 8000)
    # a shell's background jobs ignore Ctrl-C: heed it, whoever runs the tests
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "import cli; cli.main()"
    command = [sys.executable, "-c", code, "extract", str(place / "model")]
    command += [str(tmp_path / "cache"), "--train", str(data), "--block-tokens", "8"]
    process = subprocess.Popen(
        [*command, "--batch-tokens", "8"],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
    )
    ledger = tmp_path / "cache" / "ledger.jsonl"
    while not ledger.exists() or not ledger.stat().st_size:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert "Run the same command again" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("command", "task"),
    [(name, ()) for name in cli.commands.summaries if name not in cli.commands.by_task]
    + [
        (name, ("--task", names[0]))
        for name in sorted(cli.commands.by_task)
        for names in SYSTEMS.values()
    ],
)
def test_every_command_explains_each_option(command, task):
    shown = invoke(command, *task, "--help").stdout
    built = cli.commands.build(command, task)
    assert built is not None
    for parameter in built.params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{command} {parameter.name} has no help"
            assert parameter.opts[0] in shown


@pytest.mark.parametrize("command", sorted(cli.commands.by_task))
def test_help_says_whose_options_it_shows_and_where_the_others_are(command):
    for names in SYSTEMS.values():
        shown = " ".join(invoke(command, "--task", names[0], "--help").stdout.split())
        own, _, others = shown.partition("--task NAME --help")
        assert f"the task{'s' * (len(names) > 1)} {', '.join(names)}" in own
        assert all(task in others for task in tasks() if task not in names)


def test_an_unknown_task_is_answered_with_the_known_ones():
    done = run("train", "--task", "alchemy", "--help")
    assert done.returncode == 2
    assert "unknown task 'alchemy'; known: classification" in done.stderr


def test_help_lists_the_commands_without_loading_them():
    code = (
        "import sys; sys.argv = ['unipt', '--help']; import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in cli.commands.summaries)
