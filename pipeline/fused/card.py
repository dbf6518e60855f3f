"""The model card of an exported folder: what it is, how good it is, how to use it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.fused.job import Job
from pipeline.fused.modeling_unipt import UniPTModel
from pipeline.fused.parity import ParityReport

NOTES = (
    "The model's code stands in this folder and needs torch and transformers only (where it reads "
    "images or videos, numpy and Pillow too)."
)


def render_card(
    job: Job, model: UniPTModel, name: str, parameters: Mapping[str, int], report: ParityReport
) -> str:
    """Return README.md of an exported folder.

    Args:
        job: what was exported.
        model: the fused model.
        name: of the folder.
        parameters: part of the model -> number of parameters.
        report: how closely it reproduced the cache.
    """
    setup, facts = job.setup, job.facts
    backbones = [Path(job.backbones[tower].name).name for tower in job.own]
    counts = [(part, f"{number:,}") for part, number in parameters.items()]
    parts = [
        _header(model.tag, backbones),
        f"# {name}",
        f"Frozen {' and '.join(backbones)} with a UniPT side model ({setup.dataset.config.task}) "
        "that was trained on their cached activations.",
        f"## Use\n\n```python\n{model.usage(name)}\n```",
        NOTES,
        f"## Metrics\n\n{metrics_table(facts.metrics)}",
        f"## Model\n\n{table(('part', 'parameters'), counts)}",
        *(_taps(tower, setup.taps[tower].names) for tower in job.own),
        f"## Data\n\n{_json(facts.data)}",
        f"## Hyperparameters\n\n{_json(facts.training)}",
        *(
            f"## Fingerprint of the {tower} activations\n\n"
            + _json(setup.caches[tower].fingerprint.mapping)
            for tower in job.own
        ),
        f"## Agreement with the cached activations\n\n```\n{report.render()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Return split -> metric -> number, or mapping with "value", "low" and "high", as a table."""
    rows = [
        (str(split), str(metric), _number(value))
        for split, values in metrics.items()
        if isinstance(values, Mapping)
        for metric, value in values.items()
    ]
    return table(("split", "metric", "value (95 % interval)"), rows) if rows else "None recorded."


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("-" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _header(tag: str, backbones: Sequence[str]) -> str:
    lines = [f"pipeline_tag: {tag}", "library_name: transformers", "tags: [unipt]"]
    names = backbones[0] if len(backbones) == 1 else list(backbones)
    return "\n".join(["---", *lines, f"base_model: {json.dumps(names)}", "---"])


def _taps(tower: str, taps: Sequence[str]) -> str:
    return f"{tower.capitalize()} targets: {', '.join(taps[:-1]) or '(none)'}; anchor: {taps[-1]}."


def _number(value: Any) -> str:
    if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
        return f"{value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _json(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, indent=2, sort_keys=True, default=str, ensure_ascii=False)
    return f"```json\n{text}\n```"
