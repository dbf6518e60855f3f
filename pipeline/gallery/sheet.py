"""A contact sheet: the answers of a search as one image, drawn by Pillow with its own font.

Cost: one decode an answer, and about 0.3 MB of PNG.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE = 208
"""Side of a thumbnail's square, in pixels."""
GAP, MARGIN, CAPTION, HEADER = 20, 32, 46, 84
COLUMNS = 5
BACKGROUND, LINE, INK, FAINT, ACCENT = "#ffffff", "#e5e7eb", "#111827", "#6b7280", "#2563eb"
TITLE_SIZE, NOTE_SIZE, NAME_SIZE = 26, 14, 14
ELLIPSIS = "..."
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One answer: its image (None if it is gone), place, score, file name, and what it is."""

    image: Image.Image | None
    rank: int
    score: float
    name: str
    kind: str = "image"


def draw_sheet(
    tiles: Sequence[Tile], *, title: str, note: str, query: Image.Image | None = None
) -> Image.Image:
    """Return the sheet: the query on top, the tiles below it, best first, row by row.

    Args:
        tiles: the answers.
        title: the query, or its file's name; cut to fit.
        note: a line below it.
        query: the image that was asked with, shown beside the title.
    """
    columns = max(2, min(COLUMNS, len(tiles)))
    rows = -(-len(tiles) // columns)
    width = 2 * MARGIN + columns * TILE + (columns - 1) * GAP
    height = 2 * MARGIN + HEADER + rows * (TILE + CAPTION + GAP) - GAP
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    _header(sheet, title, note, query)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        left = MARGIN + column * (TILE + GAP)
        top = MARGIN + HEADER + row * (TILE + CAPTION + GAP)
        _tile(sheet, tile, left, top)
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write the sheet as PNG, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)


def shorten(text: str, font: Font, width: float, *, middle: bool = False) -> str:
    """Return `text`, cut at its end (or in its middle) to at most `width` pixels."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # characters kept: `low` fit, `high` do not
    while high - low > 1:
        kept = (low + high) // 2
        low, high = (
            (kept, high) if font.getlength(_cut(text, kept, middle)) <= width else (low, kept)
        )
    return _cut(text, low, middle)


def _cut(text: str, kept: int, middle: bool) -> str:
    tail = kept // 2 if middle else 0
    return text[: kept - tail].rstrip() + ELLIPSIS + (text[-tail:] if tail else "")


def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _header(sheet: Image.Image, title: str, note: str, query: Image.Image | None) -> None:
    draw, left = ImageDraw.Draw(sheet), MARGIN
    if query is not None:
        side = HEADER - GAP
        draw.rounded_rectangle((left, MARGIN, left + side, MARGIN + side), 8, outline=LINE)
        _paste(sheet, query, left, MARGIN, side, pad=4)
        left += side + GAP
    room = sheet.width - left - MARGIN
    line = " ".join(title.split())
    for text, size, ink, top in ((line, TITLE_SIZE, INK, 2), (note, NOTE_SIZE, FAINT, 40)):
        font = _font(size)
        draw.text((left, MARGIN + top), shorten(text, font, room), fill=ink, font=font)


def _tile(sheet: Image.Image, tile: Tile, left: int, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.rounded_rectangle((left, top, left + TILE, top + TILE), 12, outline=LINE)
    if tile.image is None:
        font = _font(NOTE_SIZE)
        middle = (left + TILE / 2, top + TILE / 2)
        draw.text(middle, "not readable", fill=FAINT, font=font, anchor="mm")
    else:
        _paste(sheet, tile.image, left, top, TILE, pad=10)
    if mark := MARKS.get(tile.kind):
        mark(draw, left + TILE - 26, top + TILE - 26)
    rank, score = _font(NAME_SIZE + 2), _font(NAME_SIZE)
    baseline = top + TILE + 6
    draw.text((left + 2, baseline), f"{tile.rank}", fill=ACCENT, font=rank)
    at = (left + TILE - 2, baseline + 1)
    draw.text(at, f"{tile.score:.3f}", fill=FAINT, font=score, anchor="ra")
    name = shorten(tile.name, score, TILE - 4, middle=True)
    draw.text((left + 2, baseline + 21), name, fill=INK, font=score)


def _paste(
    sheet: Image.Image, image: Image.Image, left: int, top: int, side: int, *, pad: int
) -> None:
    """Fit an image into a square, enlarged where it is small, its shape kept."""
    room = side - 2 * pad
    scale = min(room / image.width, room / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    method = Image.Resampling.LANCZOS if scale < 4 else Image.Resampling.NEAREST
    small = image.resize(size, method)
    sheet.paste(small, (left + (side - size[0]) // 2, top + (side - size[1]) // 2))


def _play(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """Mark a video by a small play button."""
    draw.ellipse((x, y, x + 20, y + 20), fill=INK)
    draw.polygon([(x + 8, y + 5), (x + 8, y + 15), (x + 15, y + 10)], fill=BACKGROUND)


MARKS = {"video": _play}
"""What is drawn on the images of other kinds of files."""
