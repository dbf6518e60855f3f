"""VSE-infinity and CLIP4Clip go the whole way: plan to search, with random weights.

Plan, extract both towers, train by the published recipe (fewer epochs, a smaller batch), evaluate,
compare cached, live and fused embeddings of each tower, export (with ONNX), index, search. The
weights are random, the pictures and clips generated: it shows that everything fits together at full
size, and what it takes; no metric means anything. About five minutes on two cores.

    python -m benchmarks.systems [--pictures 12] [--clips 12]
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from benchmarks.common import report
from benchmarks.published import TOWERS, System, build_systems, live_part
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.export import ExportConfig, export
from pipeline.extract import ExtractReport
from pipeline.fused.parity import tolerance
from pipeline.fused.write import ExportReport, number_types
from pipeline.index import IndexConfig, build_index
from pipeline.plan import Plan, PlanConfig, plan
from pipeline.run import Run
from pipeline.search import SearchConfig, search
from pipeline.systems import Setup
from pipeline.systems.inference import infer
from pipeline.systems.states import batch_states
from pipeline.train import train
from pipeline.training.setup import prepare

EPOCHS = 2
"""Of the training: all negatives in the first one, the hardest in the second (VSE-infinity)."""
COMPARED = 4
"""Inputs of each tower that are run live, and replayed through each exported artefact."""
INDEXED = 4
"""Pictures or clips that the exported model embeds for the search."""


@dataclass(frozen=True, kw_only=True)
class TowerFigures:
    """One tower. Sizes in bytes, errors relative to the length of an embedding.

    Attributes:
        backbone: what it is.
        taps: how many.
        bytes_per_item: of the cache, without what surrounds the states.
        rate: what the extraction computed a second, in `unit`.
        parameters: trained numbers.
        live_error: largest distance of cached and live embeddings.
        fused_errors: largest distance of cached embeddings and those of each exported artefact.
        tolerance: what is allowed of each.
    """

    backbone: str
    taps: int
    bytes_per_item: float
    rate: float
    unit: str
    parameters: int
    live_error: float
    fused_errors: dict[str, float]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether cached, live and fused embeddings agree."""
        return all(x <= self.tolerance for x in (self.live_error, *self.fused_errors.values()))


@dataclass(frozen=True, kw_only=True)
class SystemFigures:
    """One system. `seconds` are those of each stage, `export` the bytes of each exported file."""

    towers: dict[str, TowerFigures]
    parameters: int
    steps_loss: float
    export: dict[str, int]
    found: bool
    seconds: dict[str, float]


def whole_way(system: System, *, device: str, onnx: bool, options: Mapping[str, Any]) -> Any:
    """Take one system from the plan to the search."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "plan"):
        plans = {
            tower: plan(PlanConfig.build(system.planning(tower, device) | {"trial_seconds": 0.5}))
            for tower in TOWERS
        }
    with _timed(seconds, "extract"):
        extracted = system.extract(device)
    _check_bytes(plans, extracted)
    config = system.training(device=device, **options)
    with _timed(seconds, "train"):
        result = train(config)
    with _timed(seconds, "evaluate"):
        evaluate(EvaluateConfig(run=config.out, device=device))
    run = Run.open(config.out)
    with _timed(seconds, "live"):
        live = live_errors(system, prepare(config), run, device)
    with _timed(seconds, "export"):
        exported = export(
            ExportConfig(run=config.out, out=system.folder / "model", onnx=onnx, samples=COMPARED)
        )
    with _timed(seconds, "index and search"):
        found = searched(system, device)
    towers = {
        tower: _tower_figures(
            system,
            tower,
            extracted=extracted[tower],
            run=run,
            live=live[tower],
            exported=exported,
        )
        for tower in TOWERS
    }
    return SystemFigures(
        towers=towers,
        parameters=result.parameters,
        steps_loss=run.info["history"][-1]["loss"],
        export=exported.files,
        found=found,
        seconds=seconds,
    )


def live_errors(
    system: System, setup: Setup, run: Run, device: str
) -> dict[str, tuple[float, float]]:
    """Return the largest distance of cached and live embeddings of each tower, and what is allowed.

    Live states are rounded to the cache's type, as the exported model does.
    """
    model, located = run.model(), setup.splits["test"]
    cpu, errors = torch.device("cpu"), {}
    for name in TOWERS:
        backbone = system.extraction(name, device).loader()()
        cache, taps, samples = setup.caches[name], setup.taps[name], located.clean[name]
        rows = np.sort(np.unique(samples, return_index=True)[1])[:COMPARED]
        given = located.examples.inputs(name, backbone.modality)
        inputs = [given[row] for row in rows.tolist()]
        kept = infer(
            model,
            {name: samples[rows]},
            setup.caches,
            setup.taps,
            batch_size=COMPARED,
            device=cpu,
        ).values[name]
        part = live_part(backbone, taps, backbone.encode(inputs), dtype=cache.dtype)
        with torch.inference_mode():
            found = model(batch_states({name: part}, setup.taps, cpu)).values[name]
        allowed = tolerance(number_types(cache, backbone.model))
        errors[name] = (float((found - kept).norm(dim=1).max()), allowed)
    return errors


def searched(system: System, device: str) -> bool:
    """Index some media, search by text and by one of them; return whether that was found first."""
    gallery = system.folder / "gallery"
    gallery.mkdir()
    for path in system.media[:INDEXED]:
        (gallery / path.name).write_bytes(path.read_bytes())
    index = system.folder / "index"
    build_index(IndexConfig(model=system.folder / "model", media=gallery, out=index, device=device))
    asked = {"image" if system.name == "VSE-infinity" else "video": system.media[1]}
    text = search(SearchConfig(index=index, query="a dog on the beach", k=2, device=device))
    sheet = system.folder / "sheet.png"
    again = search(SearchConfig(index=index, k=2, sheet=sheet, device=device, **asked))
    return len(text.hits) == 2 and again.hits[0].path == system.media[1].name and sheet.is_file()


def _check_bytes(plans: Mapping[str, Plan], extracted: Mapping[str, ExtractReport]) -> None:
    for tower, planned in plans.items():
        if planned.total_bytes != extracted[tower].bytes:
            raise RuntimeError(
                f"{tower}: {planned.total_bytes:,} bytes planned, {extracted[tower].bytes:,} found"
            )


def _tower_figures(
    system: System,
    tower: str,
    *,
    extracted: ExtractReport,
    run: Run,
    live: tuple[float, float],
    exported: ExportReport,
) -> TowerFigures:
    side: nn.Module = getattr(run.model(), tower)
    errors: dict[str, float] = {}
    for row in exported.parity.rows:
        of, artefact = row.artefact.split(" ", 1)
        if of == tower:
            errors[artefact] = max(row.max_error, errors.get(artefact, 0.0))
    return TowerFigures(
        backbone=system.backbones[tower],
        taps=len(extracted.taps),
        bytes_per_item=extracted.bytes / extracted.samples,
        rate=extracted.tokens_per_second,
        unit=extracted.unit,
        parameters=sum(p.numel() for p in side.parameters()),
        live_error=live[0],
        fused_errors=errors,
        tolerance=live[1],
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
    click.echo(f"{stage}: {seconds[stage]:.0f} s", err=True)


def table(found: Mapping[str, SystemFigures]) -> list[str]:
    """Return the table, a row a tower, and lines on each system as a whole."""
    artefacts = dict.fromkeys(
        name for s in found.values() for t in s.towers.values() for name in t.fused_errors
    )
    head = ["system", "tower", "taps", "bytes an item", "extracted", "side parameters"]
    rows = [[*head, "tolerance", "live", *artefacts]]
    for name, system in found.items():
        for tower in system.towers.values():
            rows.append(
                [
                    name,
                    tower.backbone,
                    str(tower.taps),
                    f"{tower.bytes_per_item:,.0f}",
                    f"{tower.rate:,.3g} {tower.unit}/s",
                    f"{tower.parameters / 1e6:.2f} M",
                    f"{tower.tolerance:.1e}",
                    f"{tower.live_error:.1e}",
                    *(f"{tower.fused_errors.get(a, float('nan')):.1e}" for a in artefacts),
                ]
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    for name, system in found.items():
        stages = ", ".join(f"{stage} {value:.0f} s" for stage, value in system.seconds.items())
        heavy = {file: size for file, size in system.export.items() if size > 1e6}
        files = ", ".join(f"{file} {size / 1e6:,.0f} MB" for file, size in heavy.items())
        agree = all(tower.passed for tower in system.towers.values())
        lines += [
            f"{name}: {system.parameters / 1e6:.2f} M trained numbers; cached, live and fused "
            f"{'agree' if agree else 'DISAGREE'}; search {'worked' if system.found else 'FAILED'}",
            f"  export: {files}",
            f"  {stages}",
        ]
    return lines


@click.command()
@click.option("--pictures", default=12, show_default=True, help="Pictures of VSE-infinity.")
@click.option("--clips", default=12, show_default=True, help="Clips of CLIP4Clip.")
@click.option("--batch-size", default=6, show_default=True, help="Captions of a training step.")
@click.option("--onnx/--no-onnx", default=True, show_default=True, help="Export ONNX, too.")
@click.option("--device", default="auto", show_default=True, help="Torch device.")
def main(pictures: int, clips: int, batch_size: int, onnx: bool, device: str) -> None:
    """Take both systems the whole way; random weights, generated pictures and clips."""
    options = {"batch_size": batch_size, "epochs": EPOCHS}
    found: dict[str, SystemFigures] = {}
    with tempfile.TemporaryDirectory() as folder:
        systems = build_systems(Path(folder), pictures_given=pictures, clips_given=clips)
        for system in systems:
            found[system.name] = whole_way(system, device=device, onnx=onnx, options=options)
    lines = [
        f"random weights; {pictures} generated pictures, {clips} generated clips of 15 s (mp4); "
        f"{EPOCHS} epochs in batches of {batch_size}; errors relative to an embedding's length",
        *table(found),
    ]
    figures = {name: asdict(system) for name, system in found.items()}
    report("systems", {"weights": "random", "systems": figures}, lines)
    if not all(s.found and all(t.passed for t in s.towers.values()) for s in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
