"""Evaluates a finished retrieval run: recalls both ways with bootstrap intervals, and folds.

Cost: one pass of each tower over the split's cached inputs, the ranking's GEMM, and the resamples
of ranks already known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from cache import Cache
from cache.storage.location import Location
from pipeline.config import ConfigError
from pipeline.retrieval.data import RetrievalData, load_retrieval
from pipeline.retrieval.inference import Embedded, embed_split
from pipeline.retrieval.metrics import Ranks, bootstrap, folded, rank_all, summarize
from pipeline.retrieval.samples import LocatedPairs, locate_pairs
from pipeline.retrieval.taps import TowerTaps
from pipeline.run import Run
from pipeline.training.evaluation import EvaluateConfig, Evaluation, open_cache
from pipeline.training.files import write_json, write_lines
from pipeline.training.inference import choose_device

WAYS = {"t2m": "text to media", "m2t": "media to text"}


@dataclass(frozen=True, kw_only=True)
class RetrievalEvaluation(Evaluation):
    """Recalls of one split; `examples` are its captions.

    Attributes:
        items: number of pictures or clips.
        positions: median and mean rank both ways, from 1.
        folds: every metric averaged over the folds of the items; empty for one fold.
        fold_count: number of folds.
    """

    items: int
    positions: Mapping[str, float]
    folds: Mapping[str, float] = field(default_factory=dict)
    fold_count: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        own = {
            "items": self.items,
            "positions": dict(self.positions),
            "folds": dict(self.folds),
            "fold_count": self.fold_count,
        }
        return super().to_dict() | own

    def render(self) -> str:
        """Return a table for the terminal, a row for each way."""
        return render_retrieval([self])


class RankedRun(NamedTuple):
    """A split with its captions and items embedded by a run, and their ranks."""

    located: LocatedPairs
    text: Embedded
    media: Embedded
    ranks: Ranks


def render_retrieval(rows: list[RetrievalEvaluation]) -> str:
    """Return a table of evaluations of one split, two rows each, for the terminal."""
    if not rows:
        return "(nothing was evaluated)"
    first = rows[0]
    title = f"{first.split} ({first.examples:,} captions, {first.items:,} items)"
    lines = [[title, "", "R@1", "R@5", "R@10", "median rank", "Rsum"]]
    for row in rows:
        total = row.metrics["rsum"]
        for way, name in WAYS.items():
            cells = [row.metrics[f"{way}_r{k}"] for k in (1, 5, 10)]
            lines.append(
                [
                    row.name if way == "t2m" else "",
                    name,
                    *(f"{v.value:.1f} [{v.low:.1f}, {v.high:.1f}]" for v in cells),
                    f"{row.positions[f'{way}_median_rank']:g}",
                    f"{total.value:.1f} [{total.low:.1f}, {total.high:.1f}]"
                    if way == "t2m"
                    else "",
                ]
            )
        for way, name in WAYS.items() if row.folds else ():
            label = f"  mean of {row.fold_count} folds" if way == "t2m" else ""
            recalls = [f"{row.folds[f'{way}_r{k}']:.1f}" for k in (1, 5, 10)]
            median = f"{row.folds[f'{way}_median_rank']:.1f}"
            rsum = f"{row.folds['rsum']:.1f}" if way == "t2m" else ""
            lines.append([label, name, *recalls, median, rsum])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = ["  ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)).rstrip() for x in lines]
    note = f"recalls in percent; [..] = {first.level:.0%} bootstrap interval over items"
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:], note])


def evaluate_retrieval(config: EvaluateConfig) -> RetrievalEvaluation:
    """Evaluate a run of retrieval.

    Writes `predictions_<split>.jsonl`, `items_<split>.jsonl` and `evaluation_<split>.json` into
    the run folder.

    Raises:
        RunError: there is no finished run of retrieval.
        FingerprintMismatch: a cache is not the one the run was trained on.
        DataError: the split is missing, or not in the caches.
    """
    run = Run.open(config.run)
    located, text, media, ranks = rank_run(run, config)
    result = score_embeddings(
        text.vectors,
        media.vectors,
        located,
        ranks,
        name="side networks",
        split=config.split,
        data=run_data(run),
        resamples=config.resamples,
        level=config.level,
        seed=config.seed,
        predictions=run.path / f"predictions_{config.split}.jsonl",
    )
    write_ranks(run.path, config.split, located, ranks, trust=(text, media))
    write_json(run.path / f"evaluation_{config.split}.json", result.to_dict())
    return result


def rank_run(run: Run, config: EvaluateConfig) -> RankedRun:
    """Embed a split with the run and rank it; errors are those of `evaluate_retrieval`."""
    if config.cache is not None:
        raise ConfigError("a run of retrieval has two caches: give text_cache or media_cache")
    device = choose_device(config.device)
    model = run.towers().to(device)
    caches, taps = run_caches(run, text=config.text_cache, media=config.media_cache)
    dataset = load_retrieval(run_data(run))
    located = locate_pairs(dataset, config.split, caches)
    text, media = embed_split(
        model, caches, taps, located, batch_size=config.batch_size, device=device
    )
    over = dataset.config.m2t_over
    ranks = rank_all(text.vectors, media.vectors, located.split.item_of, m2t_over=over)
    return RankedRun(located, text, media, ranks)


def score_embeddings(
    text: Tensor,
    media: Tensor,
    located: LocatedPairs,
    ranks: Ranks,
    *,
    name: str,
    split: str,
    data: RetrievalData,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    predictions: Path | None = None,
) -> RetrievalEvaluation:
    """Return every metric of embeddings [m, E] and [n, E] with these ranks.

    Folds, where the data set's protocol has them, are ranked anew.
    """
    owner = located.split.item_of
    found = bootstrap(ranks, owner, resamples=resamples, level=level, seed=seed)
    places = {key: value for key, value in summarize(ranks).items() if key.endswith("_rank")}
    folds: dict[str, float] = {}
    if data.folds > 1:
        folds = folded(text, media, owner, data.folds, m2t_over=data.m2t_over)
    return RetrievalEvaluation(
        name=name,
        split=split,
        examples=len(owner),
        items=len(located.split.items),
        metrics=found,
        positions=places,
        folds=folds,
        fold_count=data.folds,
        level=level,
        predictions=predictions,
    )


def write_ranks(
    folder: Path,
    split: str,
    located: LocatedPairs,
    ranks: Ranks,
    *,
    trust: tuple[Embedded, Embedded],
) -> None:
    """Write one record a caption and one an item: its rank from 1, the confidence of each layer.

    `trust` are the embeddings of captions and items, with their confidences.
    """
    text, media = trust
    items = [item.id for item in located.split.items]
    captions = [
        {"id": caption.id, "item": items[owner], "rank": rank + 1, "confidence": layers}
        for caption, owner, rank, layers in zip(
            located.split.captions,
            located.split.item_of.tolist(),
            ranks.text_to_media.tolist(),
            text.confidence.tolist(),
            strict=True,
        )
    ]
    write_lines(folder / f"predictions_{split}.jsonl", captions)
    each = zip(items, ranks.media_to_text.tolist(), media.confidence.tolist(), strict=True)
    records = [{"id": name, "rank": rank + 1, "confidence": layers} for name, rank, layers in each]
    write_lines(folder / f"items_{split}.jsonl", records)


def run_data(run: Run) -> RetrievalData:
    """Return the configuration of the data set that a run of retrieval was trained on."""
    return RetrievalData.build(run.info["config"]["data"])


def run_caches(
    run: Run, *, text: Location | None = None, media: Location | None = None
) -> tuple[dict[str, Cache], dict[str, TowerTaps]]:
    """Open the caches of a run of retrieval, with the taps each tower takes.

    Args:
        run: a finished run.
        text: where the captions' cache is now, if it has moved.
        media: where the items' cache is now, if it has moved.

    Raises:
        FingerprintMismatch: a cache is not the one the run was trained on.
    """
    moved = {"text": text, "media": media}
    caches = {
        tower: open_cache(run, recorded["cache"], moved[tower])
        for tower, recorded in run.info["towers"].items()
    }
    taps = {}
    for tower, cache in caches.items():
        known = {tap.name: tap for tap in cache.taps}
        taps[tower] = TowerTaps(tuple(known[name] for name in run.tower_taps(tower)))
    return caches, taps
