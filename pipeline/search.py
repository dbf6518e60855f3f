"""Search: the images or videos of an index that are nearest to a text, an image or a video.

Cost: one forward pass for the query and one product with all vectors (n E multiplications: 0.1 s
at n = 10**6, E = 512), plus one decode an answer for a contact sheet.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field
from sklearn.neighbors import NearestNeighbors

from pipeline.config import Config
from pipeline.fused.loading import load_exported
from pipeline.gallery.embed import model_digest, query_vector
from pipeline.gallery.sheet import Tile, draw_sheet, save_sheet
from pipeline.gallery.store import NOUNS, Entry, GalleryError, Index, StaleIndex, listed, shown
from pipeline.media.images import MediaError, open_image
from pipeline.media.video import read_frames
from pipeline.systems.inference import choose_device


class SearchConfig(Config):
    """Which index is asked for what, and how many answers are wanted."""

    index: Path
    """Folder of an index."""
    query: str | None = None
    """Text to search by."""
    image: Path | None = None
    """Image to search by, instead of a text."""
    video: Path | None = None
    """Video to search by, instead of a text."""
    k: int = Field(default=10, ge=1)
    """Answers, at most as many as there are files."""
    sheet: Path | None = None
    """PNG file to draw the answers on."""
    model: Path | None = None
    """Folder of the exported model, where it has moved since the index was built."""
    media: Path | None = None
    """Media folder, where it has moved since the index was built."""
    device: str = "auto"
    """Torch device; auto takes cuda, then mps, then cpu."""
    trust_code: bool = False
    """Run the model code in the folder where it is not this version's own."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One answer.

    Attributes:
        rank: from 1.
        score: cosine with the query.
        path: of the file, relative to the media folder.
        state: "same", "changed" since it was indexed, or "gone".
    """

    rank: int
    score: float
    path: str
    state: str


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """The answers to one query.

    Attributes:
        query: the text, or the file's path.
        media: the media folder.
        files: how many files the index holds, of the kind `kind`.
        hits: the answers, best first.
        warnings: what is out of date.
        sheet: the contact sheet, if one was drawn.
    """

    query: str
    media: Path
    kind: str
    files: int
    hits: tuple[Hit, ...]
    warnings: tuple[str, ...]
    sheet: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        sheet = None if self.sheet is None else str(self.sheet)
        return asdict(self) | {
            "media": str(self.media),
            "sheet": sheet,
            "hits": [asdict(hit) for hit in self.hits],
            "warnings": list(self.warnings),
        }

    def render(self) -> str:
        """Return the report as lines of text."""
        lines = [f"{self.query}: nearest of {self.files:,} {NOUNS[self.kind]} in {self.media}"]
        lines += [
            f"{hit.rank:>4}  {hit.score:7.4f}  {shown(hit.path)}"
            + ("" if hit.state == "same" else f"  ({hit.state})")
            for hit in self.hits
        ]
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines += [f"contact sheet: {self.sheet}"] if self.sheet else []
        return "\n".join(lines)


def search(config: SearchConfig) -> SearchReport:
    """Find the `config.k` files nearest to the query.

    Raises:
        GalleryError: there is no index, not exactly one query, or it is empty or unreadable.
        StaleIndex: the index is unfinished, or the model is not the one it was built with.
        NotAnExport: the model's folder holds no exported model to search with.
    """
    kind, query = _query(config)
    index = Index.read(config.index)
    folder = config.model or index.model
    _check_fresh(index, config.index, folder)
    model = load_exported(folder, "search", trust_code=config.trust_code)
    model.to(choose_device(config.device))
    try:
        vector = query_vector(model, kind, query)
    except (MediaError, OSError) as error:
        raise GalleryError(f"the query cannot be read: {error}") from error
    neighbours = NearestNeighbors(
        n_neighbors=min(config.k, len(index.entries)), metric="cosine", algorithm="brute"
    ).fit(index.vectors)
    distances, rows = neighbours.kneighbors(vector[None])
    media = config.media or index.media
    found = [index.entries[row] for row in rows[0]]
    hits = tuple(
        Hit(rank=rank, score=1.0 - float(distance), path=e.path, state=_state(e, media))
        for rank, (e, distance) in enumerate(zip(found, distances[0], strict=True), 1)
    )
    report = SearchReport(
        query=str(query),
        media=media,
        kind=index.kind,
        files=len(index.entries),
        hits=hits,
        warnings=tuple(_warnings(hits, media, config.index)),
        sheet=config.sheet,
    )
    if config.sheet is not None:
        _draw(report, config.sheet, kind, query)
    return report


def _query(config: SearchConfig) -> tuple[str, str | Path]:
    """Return the kind of the one query that is given, and it."""
    asked = {"text": config.query, "image": config.image, "video": config.video}
    given = [(kind, query) for kind, query in asked.items() if query is not None]
    if len(given) != 1:
        raise GalleryError(
            f"give one query, not {len(given)}: a text, an image (image=...) or a video (video=...)"
        )
    if not str(given[0][1]).strip():
        raise GalleryError("the query is empty: say what to look for")
    return given[0]


def _check_fresh(index: Index, path: Path, model: Path) -> None:
    if not index.complete:
        raise StaleIndex(
            f"the index {path} is unfinished: run the same `index` command again to finish it"
        )
    if not model.is_dir():
        raise StaleIndex(
            f"the model {model} of the index {path} is gone: say where it is now with `model`"
        )
    if model_digest(model) != index.digest:
        raise StaleIndex(
            f"the model in {model} is not the one that the index {path} was built with, so their "
            "vectors cannot be compared: build the index again, or give its model with `model`"
        )


def _state(entry: Entry, media: Path) -> str:
    if not (media / entry.path).is_file():
        return "gone"
    return "same" if entry.unchanged(media) else "changed"


def _warnings(hits: Sequence[Hit], media: Path, index: Path) -> list[str]:
    if not media.is_dir():
        return [f"the media folder {media} is gone: say where it is now with `media`"]
    found = []
    for state, what in (("gone", "are gone"), ("changed", "have changed since they were indexed")):
        names = [hit.path for hit in hits if hit.state == state]
        if names:
            found.append(
                f"{len(names)} of {len(hits)} answers {what} ({listed(names)}): bring {index} up "
                "to date with `index`"
            )
    return found


def _draw(report: SearchReport, path: Path, kind: str, query: str | Path) -> None:
    tiles = [
        Tile(
            image=_thumbnail(report.media / hit.path, report.kind),
            rank=hit.rank,
            score=hit.score,
            name=shown(Path(hit.path).name),
            kind=report.kind,
        )
        for hit in report.hits
    ]
    sheet = draw_sheet(
        tiles,
        title=query if isinstance(query, str) else shown(query.name),
        note=f"nearest {len(tiles)} of {report.files:,} {NOUNS[report.kind]}, by cosine",
        query=None if isinstance(query, str) else _thumbnail(query, kind),
    )
    save_sheet(sheet, path)


def _thumbnail(path: Path, kind: str) -> Image.Image | None:
    """Return the image, or the frame in the middle of a video; None if it cannot be read."""
    try:
        return THUMBNAILS[kind](path)
    except (MediaError, OSError):
        return None


THUMBNAILS: dict[str, Callable[[Path], Image.Image]] = {
    "image": open_image,
    "video": lambda path: read_frames(path, fps=0, max_frames=1)[0],
}
