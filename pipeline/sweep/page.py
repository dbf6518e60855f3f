"""The frame of a sweep's report: style, script and sections; nothing is loaded from anywhere."""

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1d2327;
  --soft: #5d676f; --line: #e3e6e8; --blue: #2a6f97; --orange: #d1603d; --grey: #a9b2b8;
  --red: #b3324b; --green: #4d8f6a; --violet: #8d6a9f;
  --s0: #d5dade; --s1: #c3d3de; --s2: #a9c6d8; --s3: #8cb6cf; --s4: #6ea5c4; --s5: #5191b4;
  --s6: #377ca2; --s7: #24668c; --s8: #d98a5f; --s9: #d1603d; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181b; --card: #1c2226; --ink: #e6eaed;
  --soft: #9aa6ae; --line: #323a40; --blue: #6db3db; --orange: #f0936f; --grey: #5f6a72;
  --red: #ea7186; --green: #82c49c; --violet: #b99bcb;
  --s0: #363f45; --s1: #394954; --s2: #3c5564; --s3: #416576; --s4: #477789; --s5: #508b9f;
  --s6: #5ca0ba; --s7: #6db3db; --s8: #e8a37f; --s9: #f0936f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; margin: 0; } h2 { font-size: 16px; margin: 0 0 2px; }
p, .note { margin: 0 0 10px; color: var(--soft); } header p { margin: 4px 0 18px; }
code { font: 13px ui-monospace, Consolas, monospace; background: var(--line); padding: 1px 5px;
  border-radius: 4px; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px;
  margin-bottom: 14px; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 18px; }
.tile b { display: block; font-size: 23px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr));
  gap: 14px; margin-bottom: 14px; }
section { overflow-x: auto; } section.wide { margin-bottom: 14px; }
svg { display: block; width: 100%; min-width: 440px; height: auto; }
section.wide > svg { min-width: 760px; }
section.wide > svg[aria-label^="importance"] { min-width: 440px; max-width: 600px; }
svg text { font: 11.5px system-ui, sans-serif; }
.tick { fill: var(--soft); } .label { fill: var(--soft); } .name { fill: var(--ink); }
.halo { paint-order: stroke; stroke: var(--card); stroke-width: 6px; stroke-linejoin: round; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.rung { stroke: var(--soft); stroke-dasharray: 4 4; } .whisker { stroke: var(--ink); }
.best { fill: none; stroke: var(--orange); stroke-width: 1.6; }
circle.complete { fill: var(--blue); } circle.pruned { fill: var(--grey); }
circle.failed { fill: none; stroke: var(--red); stroke-width: 1.6; }
circle.winner { fill: var(--orange); }
path.curve, path.line { fill: none; stroke-width: 1.5; }
.curve.complete { stroke: var(--blue); opacity: .8; } .curve.pruned { stroke: var(--grey); }
.curve.failed { stroke: var(--red); } .curve.winner { stroke: var(--orange); stroke-width: 3; }
.shade0 { stroke: var(--s0); } .shade1 { stroke: var(--s1); } .shade2 { stroke: var(--s2); }
.shade3 { stroke: var(--s3); } .shade4 { stroke: var(--s4); } .shade5 { stroke: var(--s5); }
.shade6 { stroke: var(--s6); } .shade7 { stroke: var(--s7); } .shade8 { stroke: var(--s8); }
.shade9 { stroke: var(--s9); stroke-width: 2.2; }
.bar, .group0 { fill: var(--blue); } .group1 { fill: var(--orange); }
.group2 { fill: var(--green); } .group3 { fill: var(--violet); }
.group4 { fill: var(--red); } .group5 { fill: var(--grey); }
[data-trial] { cursor: pointer; }
svg .on { stroke: var(--ink) !important; opacity: 1 !important; }
svg path.on { stroke-width: 3.4; } svg circle.on { stroke-width: 2.4; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line);
  white-space: nowrap; } th { color: var(--soft); font-weight: 600; font-size: 13px; }
table.sorted th { cursor: pointer; } tr.on td { background: var(--line); }
td.words, th.words { text-align: left; } .key { display: inline-flex; gap: 14px; flex-wrap: wrap; }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 5px; }
.scroll { max-height: 560px; overflow: auto; } .scroll th { position: sticky; top: 0;
  background: var(--card); }
"""

SCRIPT = """
const marks = number => document.querySelectorAll(`[data-trial="${number}"]`);
const light = (number, on) => marks(number).forEach(mark => {
  mark.classList.toggle("on", on);
  if (on && mark.matches("svg path")) mark.parentNode.append(mark);
});
let pinned = null;
document.querySelectorAll("[data-trial]").forEach(mark => {
  const number = mark.dataset.trial;
  mark.addEventListener("mouseenter", () => light(number, true));
  mark.addEventListener("mouseleave", () => number !== pinned && light(number, false));
  mark.addEventListener("click", () => {
    if (pinned !== null) light(pinned, false);
    pinned = pinned === number ? null : number;
    if (pinned !== null) light(pinned, true);
  });
});
document.querySelectorAll("table.sorted th").forEach((head, column) => {
  let up = false;
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = (a, b) => a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b
      : String(a).localeCompare(String(b));
    up = !up;
    [...body.rows].sort((a, b) => (up ? 1 : -1) * order(value(a), value(b)))
      .forEach(row => body.append(row));
  });
});
"""


def page(title: str, body: str) -> str:
    """Return the whole page, in one file."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def section(title: str, note: str, content: str, *, wide: bool = False) -> str:
    """Return a card: a title, a sentence on how to read it, and its content."""
    kind = ' class="wide"' if wide else ""
    head = f'<h2>{escape(title)}</h2><div class="note">{note}</div>'
    return f"<section{kind}>{head}{content}</section>"


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """Return the facts, each a figure and what it is."""
    cards = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(words)}</span></div>'
        for figure, words in facts
    )
    return f'<div class="tiles">{cards}</div>'


def pair(*cards: str) -> str:
    """Return cards side by side, where the page is wide enough."""
    return f'<div class="grid2">{"".join(cards)}</div>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[tuple[str, object]]],
    *,
    trials: Sequence[int] | None = None,
) -> str:
    """Return a table of cells, each what is shown and what it is sorted by.

    Args:
        head: names of the columns.
        rows: the cells.
        trials: number of each row's trial; the columns can then be sorted.
    """
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(
            f'<td data-value="{escape(str(value), quote=True)}">{escape(words)}</td>'
            for words, value in row
        )
        mark = "" if trials is None else f' data-trial="{trials[place]}"'
        lines.append(f"<tr{mark}>{cells}</tr>")
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    kind = "" if trials is None else ' class="sorted"'
    body = "".join(lines)
    return f"<table{kind}><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def key(entries: Sequence[tuple[str, str]]) -> str:
    """Return the key of colours: variable and words of each."""
    marks = "".join(
        f'<span><i style="background: var(--{colour})"></i>{escape(words)}</span>'
        for colour, words in entries
    )
    return f'<span class="key">{marks}</span>'
