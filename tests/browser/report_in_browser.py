"""The pages of sweeps in a real browser, headless: no error, no request, nothing cut off.

`make test-browser` collects this file, which needs Chromium: at CHROMIUM, or on the path.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "sweep"))

import pairkit
from playwright.sync_api import Browser, Page, sync_playwright
from sweepkit import sweep_config

from pipeline.sweep import SweepConfig, sweep
from pipeline.sweep.report import report_sweep

WIDTHS = {"desk": 1280, "phone": 390}
SPACE = {"lr": "log:1e-3..1e-1", "pooling": "mean,meanmax", "epochs": "int:2..4"}
OUTSIDE = """() => [...document.querySelectorAll("svg text")].filter(text => {
  const one = text.getBoundingClientRect(), all = text.closest("svg").getBoundingClientRect();
  return one.left < all.left - 1 || one.right > all.right + 1
    || one.top < all.top - 1 || one.bottom > all.bottom + 1;
}).map(text => text.textContent)"""
"""The words of the charts that reach out of their chart."""


def chromium() -> str:
    """Return the browser's program; without one these tests fail."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert found, "there is no browser: install chromium, or give its path in CHROMIUM"
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    settings = {"executable_path": chromium(), "args": ["--no-sandbox"]}  # it opens only our pages
    with sync_playwright() as playwright, playwright.chromium.launch(**settings) as one:
        yield one


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a sweep over a classifier and of one over two towers."""
    place = tmp_path_factory.mktemp("sweeps")
    values = pairkit.settings(place / "pairs", epochs=2, embed_width=None)
    pairs = {"space": {"lr": [1e-3, 1e-2]}, "sampler": "grid", "trials": None}
    done = {
        "classifier": sweep(sweep_config(place, space=SPACE)),
        "retrieval": sweep(SweepConfig.build(values | pairs)),
    }
    return {name: report_sweep(result.path) for name, result in done.items()}


class Watched:
    """A page that is open, with everything it has asked for and complained of."""

    def __init__(self, page: Page, file: Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("name", ["classifier", "retrieval"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_without_errors_and_asks_for_nothing(browser, pages, name, width, scheme):
    with browser.new_context(
        offline=True, color_scheme=scheme, viewport={"width": width, "height": 900}
    ) as context:
        one = Watched(context.new_page(), pages[name])
        assert one.complaints == []
        assert [url for url in one.requests if not url.startswith("data:")] == [
            pages[name].as_uri()
        ]
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width
        assert one.page.evaluate(OUTSIDE) == []
        paper = one.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(251, 251, 250)") == (scheme == "light")


def test_a_trial_is_shown_everywhere_and_kept_by_a_click(browser, pages):
    with browser.new_context(viewport={"width": 1280, "height": 2000}) as context:
        one = Watched(context.new_page(), pages["classifier"])
        row = one.page.locator("tr[data-trial='3']")
        row.hover()
        shown = one.page.locator("[data-trial='3'].on")
        assert shown.count() == one.page.locator("[data-trial='3']").count() > 3
        one.page.locator("h1").hover()
        assert shown.count() == 0
        row.click()
        one.page.locator("h1").hover()
        assert shown.count() > 3
        assert one.complaints == []


def test_the_table_is_sorted_by_a_click_on_its_head(browser, pages):
    with browser.new_context(viewport={"width": 1280, "height": 2000}) as context:
        one = Watched(context.new_page(), pages["classifier"])
        head = one.page.locator("table.sorted:has(tr[data-trial]) th", has_text="trial").first
        rows = one.page.locator("tr[data-trial]")
        head.click()
        first = [row.get_attribute("data-trial") for row in rows.all()]
        assert first == [str(number) for number in range(9)]
        head.click()
        assert [row.get_attribute("data-trial") for row in rows.all()] == first[::-1]
        assert one.complaints == []


def test_what_a_page_complains_of_is_seen(browser, tmp_path):
    """The checks above can fail: a page with an error, a request and words cut off shows them."""
    file = tmp_path / "bad.html"
    file.write_text(
        "<!DOCTYPE html><title>bad</title><img src='http://127.0.0.1:9/none.png'>"
        "<svg width='50' height='20'><text x='40' y='15'>words that are cut off</text></svg>"
        "<script>console.warn('careful'); nothing.at.all;</script>"
    )
    with browser.new_context() as context:
        one = Watched(context.new_page(), file)
        assert any("careful" in words for words in one.complaints)
        assert any("nothing is not defined" in words for words in one.complaints)
        assert "http://127.0.0.1:9/none.png" in one.requests
        assert one.page.evaluate(OUTSIDE) == ["words that are cut off"]
