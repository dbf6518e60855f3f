"""The model card of an exported folder: what it is, how good it is, how to use it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

USE = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

classify = pipeline("text-classification", "{name}", trust_remote_code=True)
print(classify({example}, truncation=True))

model = AutoModelForSequenceClassification.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
```"""


def render_card(
    *,
    name: str,
    backbone: str,
    labels: tuple[str, ...] | None,
    pairs: bool,
    taps: tuple[str, ...],
    parameters: Mapping[str, int],
    metrics: Mapping[str, Any],
    data: Mapping[str, Any],
    training: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    parity: str,
) -> str:
    """Return README.md of an exported folder.

    Args:
        name: of the folder.
        backbone: what the frozen model is called.
        labels: class names; None for a regression.
        pairs: whether an example is two texts.
        taps: the recorded taps; the last one is the anchor.
        parameters: part of the model -> number of parameters.
        metrics: split -> metric -> number, or mapping with "value", "low" and "high".
        data: the configuration of the data.
        training: the hyperparameters.
        fingerprint: of the cache.
        parity: the rendered parity report.
    """
    kind = f"one of {len(labels)} classes ({', '.join(labels)})" if labels else "a score"
    example = '{"text": "One sentence.", "text_pair": "Another."}' if pairs else '"One sentence."'
    parts = [
        _header(backbone),
        f"# {name}",
        f"A frozen {backbone} with a UniPT side classifier trained on its cached activations: "
        f"{'two texts' if pairs else 'a text'} in, {kind} out.",
        "## Use\n\n" + USE.format(name=name, example=example),
        "The model's code stands in this folder and needs torch and transformers only. Pass "
        "`output_confidence=True` to the model for the weight it gives to each tap.",
        "## Metrics\n\n" + _metrics(metrics),
        "## Model\n\n"
        + _table(("part", "parameters"), [(k, f"{v:,}") for k, v in parameters.items()]),
        f"Targets: {', '.join(taps[:-1]) or '(none)'}; anchor: {taps[-1]}.",
        "## Data\n\n" + _json(data),
        "## Hyperparameters\n\n" + _json(training),
        "## Fingerprint of the activations\n\n" + _json(fingerprint),
        f"## Agreement with the cached activations\n\n```\n{parity}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _header(backbone: str) -> str:
    lines = ["pipeline_tag: text-classification", "library_name: transformers", "tags: [unipt]"]
    return "\n".join(["---", *lines, f"base_model: {json.dumps(backbone)}", "---"])


def _metrics(metrics: Mapping[str, Any]) -> str:
    rows = [
        (str(split), str(metric), _number(value))
        for split, values in metrics.items()
        if isinstance(values, Mapping)
        for metric, value in values.items()
    ]
    return _table(("split", "metric", "value (95 % interval)"), rows) if rows else "None recorded."


def _number(value: Any) -> str:
    if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
        return f"{value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("-" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _json(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, indent=2, sort_keys=True, default=str, ensure_ascii=False)
    return f"```json\n{text}\n```"
