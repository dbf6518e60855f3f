"""The page of a sweep: one file, nothing loaded from anywhere, every trial in it."""

import re
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from sweepkit import sweep_config

import cli
from pipeline.sweep import SweepError, sweep
from pipeline.sweep.drawing import Scale, number
from pipeline.sweep.folder import begin
from pipeline.sweep.report import report_sweep
from pipeline.sweep.space import Space

VOID = {"meta", "link"}


class Checked(HTMLParser):
    """Reads a page; knows what it would load, and whether its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.trials: set[str] = set()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loads += [values[key] for key in ("src", "href", "data", "action") if key in values]
        self.trials |= {values["data-trial"]} if "data-trial" in values else set()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    space = {"lr": "log:1e-3..1e-1", "pooling": "mean,meanmax", "epochs": "int:2..4"}
    return sweep(sweep_config(tmp_path_factory.mktemp("report"), space=space))


def test_the_page_is_one_file_that_loads_nothing(done):
    page = report_sweep(done.path).read_text(encoding="utf-8")
    checked = Checked()
    checked.feed(page)
    assert checked.open == []
    assert checked.loads == ["data:,"]
    assert checked.trials == {str(number) for number in range(9)}
    assert not re.search(r"https?:|@import|url\(", page)
    assert not re.search(r'[\s">]nan\b', page)
    assert len(page) < 200_000
    for words in ("History", "Learning curves", "Importance", "Layers of the winner", "Cost"):
        assert f"<h2>{words}</h2>" in page


def test_the_command_draws_sweeps_too(done, tmp_path):
    result = CliRunner().invoke(cli.commands, ["report", str(done.path), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(tmp_path / "report.html")


def test_an_unfinished_sweep_says_how_to_go_on(tmp_path):
    config = sweep_config(tmp_path)
    begin(config, Space.parse(config.space), "identity")
    with pytest.raises(SweepError, match=r"unipt sweep --resume --out"):
        report_sweep(config.out)
    with pytest.raises(SweepError, match="holds no sweep"):
        report_sweep(tmp_path)


def test_names_of_folders_cannot_break_the_page(tmp_path):
    config = sweep_config(tmp_path, "a<b&c", trials=2, epochs=1, refit="none", space={"lr": [0.1]})
    page = report_sweep(sweep(config).path).read_text(encoding="utf-8")
    Checked().feed(page)
    assert "<h1>Sweep a&lt;b&amp;c</h1>" in page
    assert "a<b" not in page


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 10, 0, 1), [0, 2, 4, 6, 8, 10]),
        (Scale(0.83, 0.96, 0, 1), [0.85, 0.9, 0.95]),
        (Scale(1e-4, 1e-2, 0, 1, log=True), [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2]),
        (Scale(3, 3, 0, 1), [3]),
    ],
)
def test_ticks_are_round_numbers_within_the_scale(scale, ticks):
    assert scale.ticks() == pytest.approx(ticks)


def test_numbers_are_short():
    assert [number(v) for v in (0.0, 0.05, 1e-4, 123456.0, 2.0)] == [
        "0",
        "0.05",
        "1e-4",
        "1e5",
        "2",
    ]
