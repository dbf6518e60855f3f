"""The model card of an exported folder: what it is, how good it is, how to use it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Card:
    """What README.md of an exported folder says.

    Attributes:
        name: of the folder.
        task: `pipeline_tag` of the hub.
        backbones: what the frozen models are called.
        summary: one sentence.
        use: code that loads and uses it.
        notes: what else a user needs to know.
        metrics: a table.
        taps: tower ("" where there is but one) -> its taps; the last one is the anchor.
        parameters: part of the model -> number of parameters.
        data: the configuration of the data.
        training: the hyperparameters.
        fingerprints: tower -> fingerprint of its cache.
        parity: the rendered parity report.
    """

    name: str
    task: str
    backbones: Sequence[str]
    summary: str
    use: str
    notes: str
    metrics: str
    taps: Mapping[str, Sequence[str]]
    parameters: Mapping[str, int]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    fingerprints: Mapping[str, Mapping[str, Any]]
    parity: str


def render_card(card: Card) -> str:
    """Return README.md of an exported folder."""
    counts = [(part, f"{number:,}") for part, number in card.parameters.items()]
    parts = [
        _header(card),
        f"# {card.name}",
        card.summary,
        f"## Use\n\n{card.use}",
        card.notes,
        f"## Metrics\n\n{card.metrics}",
        f"## Model\n\n{table(('part', 'parameters'), counts)}",
        *(_taps(tower, taps) for tower, taps in card.taps.items()),
        f"## Data\n\n{_json(card.data)}",
        f"## Hyperparameters\n\n{_json(card.training)}",
        *(
            f"## Fingerprint of the {f'{tower} '.lstrip()}activations\n\n{_json(found)}"
            for tower, found in card.fingerprints.items()
        ),
        f"## Agreement with the cached activations\n\n```\n{card.parity}\n```",
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


def _header(card: Card) -> str:
    lines = [f"pipeline_tag: {card.task}", "library_name: transformers", "tags: [unipt]"]
    names = card.backbones[0] if len(card.backbones) == 1 else list(card.backbones)
    return "\n".join(["---", *lines, f"base_model: {json.dumps(names)}", "---"])


def _taps(tower: str, taps: Sequence[str]) -> str:
    head = f"{tower.capitalize()} targets" if tower else "Targets"
    return f"{head}: {', '.join(taps[:-1]) or '(none)'}; anchor: {taps[-1]}."


def _number(value: Any) -> str:
    if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
        return f"{value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _json(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, indent=2, sort_keys=True, default=str, ensure_ascii=False)
    return f"```json\n{text}\n```"
