"""Do the cache, the live backbone and the exported model say the same? On real weights and tweets.

For each family and storage type the whole way runs: extract, train one epoch, export. The live
side is transformers alone, without this library: its own tokenizer, its own loading, its own
`output_hidden_states`.

Taps: every cached number against the live one of that sentence alone, unpadded. The error is
relative to the live number, or to the tap's root mean square where the number is smaller. Allowed
is the storage type's unit roundoff u, and `FLOOR` for float32 sums in another order.

Logits: the trained classifier on cached, packed states against live, padded states and against
the exported model, at batch 1 and 8; tolerances are those of `pipeline.fused.parity`. Live states
go in twice: rounded as the cache rounds them, and as they are (`unrounded`), where all of the
storage error shows. No label may change but for `unrounded`, whose changes are only counted.

    python -m benchmarks.equivalence [--samples 400] [--family minilm --family mpnet ...]

About 450 MB are downloaded once; 3 GB of disk are used on the way, 0.8 GB of them are kept.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from benchmarks.common import report
from benchmarks.sentences import WORK
from benchmarks.weights import distilbert, mpnet
from cache import Cache
from cache.format.spec import StorageType
from pipeline.backbones.quiet import quiet_transformers
from pipeline.data import DataConfig
from pipeline.demo.assets import empty_folder, minilm
from pipeline.demo.run import tweets
from pipeline.export import ExportConfig, export
from pipeline.extract import ExtractConfig, extract
from pipeline.fused import parity
from pipeline.fused.loading import load_fused
from pipeline.inputs import KEY_BYTES, TextInput
from pipeline.run import Run
from pipeline.systems import data_config, load_dataset, train_config
from pipeline.systems.inference import infer
from pipeline.systems.taps import select
from pipeline.train import train
from unipt import SideModel, States

TOWER = "text"

FAMILIES: dict[str, tuple[Callable[[Path], Path], tuple[StorageType, ...]]] = {
    "minilm": (minilm, ("float16", "bfloat16", "float32")),
    "distilbert": (distilbert, ("float16", "bfloat16")),
    "mpnet": (mpnet, ("float16",)),
}
"""Where each family's weights come from, and the storage types it is tried with."""


@dataclass(frozen=True, kw_only=True)
class TapError:
    """One tap: largest error, what is allowed, and the share of numbers stored bit for bit."""

    tap: str
    max_error: float
    allowed: float
    exact: float


class Live:
    """A backbone as transformers alone runs it; states are kept, for they are asked for again."""

    def __init__(self, folder: Path) -> None:
        with quiet_transformers():
            self.model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._kept: dict[tuple[torch.Size, bytes], Tensor] = {}

    def encode(self, texts: Sequence[str], extra: int = 0) -> dict[str, Tensor]:
        """Tokenise with `extra` tokens of padding beyond the longest text, [B, L] each."""
        found = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        fill = {"input_ids": self.tokenizer.pad_token_id}
        return {name: F.pad(x, (0, extra), value=fill.get(name, 0)) for name, x in found.items()}

    @torch.inference_mode()
    def states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings and the output of each layer, [N + 1, B, L, D]."""
        ids = inputs["input_ids"]
        key = (ids.shape, ids.numpy().tobytes())
        if key not in self._kept:
            found = self.model(**inputs, output_hidden_states=True).hidden_states
            self._kept[key] = torch.stack(found)
        return self._kept[key]

    def runner(self, model: SideModel, cache: Cache, dtype: torch.dtype) -> parity.Runner:
        """Return the side model on live, padded states that are rounded to `dtype`."""
        names, axis = [tap.name for tap in cache.taps], cache.taps[0].axis

        @torch.inference_mode()
        def run(inputs: Mapping[str, Tensor]) -> Tensor:
            states = self.states(inputs).to(dtype).float()
            masks = {axis: inputs["attention_mask"].bool()}
            given = States(dict(zip(names, states, strict=True)), masks=masks)
            logits: Tensor = model({TOWER: given}).values["logits"]
            return logits

        return run


def write_tweets(count: int, target: Path) -> list[str]:
    """Write `count` labelled tweets to `target`; return their distinct texts."""
    examples = load_dataset(tweets(WORK)).split("train").examples[:count]
    lines = [json.dumps({"text": e.inputs[0].text, "label": e.target}) for e in examples]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(dict.fromkeys(example.inputs[0].text for example in examples))


def compare_taps(cache: Cache, samples: Sequence[int], texts: Sequence[str], live: Live) -> Any:
    """Compare every cached number with the live backbone's, sentence by sentence."""
    names = [tap.name for tap in cache.taps]
    stored = cache.read(np.asarray(samples), names)
    alone = [live.states(live.encode([text]))[:, 0] for text in texts]  # [N + 1, L, D] each
    if {len(states) for states in alone} != {len(names)}:
        raise ValueError(f"transformers returns {len(alone[0])} states, the cache has {names}")
    roundoff = parity.UNIT_ROUNDOFF[str(cache.dtype).removeprefix("torch.")]
    rows = []
    for number, name in enumerate(names):
        wanted = torch.cat([states[number] for states in alone])  # [T, D]
        values = stored[name]
        scale = wanted.abs().clamp(min=float(wanted.square().mean().sqrt()))
        rows.append(
            TapError(
                tap=name,
                max_error=float(((values.float() - wanted).abs() / scale).max()),
                allowed=roundoff + parity.FLOOR,
                exact=float((values == wanted.to(values.dtype)).float().mean()),
            )
        )
    return rows


def compare_logits(
    cache: Cache, samples: Sequence[int], texts: Sequence[str], live: Live, work: Path
) -> list[tuple[str, parity.ParityReport]]:
    """Compare the logits on cached states with live and exported ones; return named reports."""
    model, stored = Run.open(work / "trained").model(), str(cache.dtype).removeprefix("torch.")
    cached = infer(
        model,
        {TOWER: np.asarray(samples)},
        {TOWER: cache},
        {TOWER: select(cache, None, "taps")},
        batch_size=parity.BATCH,
        device=torch.device("cpu"),
    )
    fused = load_fused(work / "model")

    def encode_live(positions: Sequence[int], extra: int) -> dict[str, Tensor]:
        return live.encode([texts[i] for i in positions], extra)

    def encode_fused(positions: Sequence[int], extra: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = fused.inputs({TOWER: [texts[i] for i in positions]}, extra=extra)
        return found

    def run_fused(inputs: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = fused.run(**inputs).values["logits"]
        return logits

    def compared(
        name: str, runner: parity.Runner, encode: parity.Encoder, types: Mapping[str, str]
    ) -> tuple[str, parity.ParityReport]:
        part = parity.Part(
            runners={name: runner},
            encode=encode,
            reference=cached.values["logits"],
            answers=lambda logits: logits.argmax(1),
            types=types,
        )
        return name, parity.replay([part])

    rounded = {"stored": stored, "computed": "float32"}
    exact = live.runner(model, cache, torch.float32)
    return [
        compared("live", live.runner(model, cache, cache.dtype), encode_live, rounded),
        compared("fused", run_fused, encode_fused, rounded),
        compared("unrounded", exact, encode_live, {"states": stored}),
    ]


def measure(
    backbone: Path, dtype: StorageType, data: DataConfig, texts: Sequence[str], live: Live
) -> dict[str, Any]:
    """Extract, train and export with one storage type, and compare; files are removed."""
    work = empty_folder(WORK / "equivalence" / "run")
    path, out = work / "cache", work / "trained"
    extract(
        ExtractConfig(backbone=str(backbone), out=path, data=data, device="cpu", store_dtype=dtype)
    )
    options = {"data": data, "cache": path, "out": out, "epochs": 1, "device": "cpu"}
    train(train_config(options))
    export(ExportConfig(run=out, out=work / "model", samples=8))
    cache = Cache.open(path)
    keys = np.frombuffer(b"".join(TextInput(t).key() for t in texts), dtype=np.uint8)
    samples = cache.find(keys.reshape(-1, KEY_BYTES)).tolist()
    taps = compare_taps(cache, samples, texts, live)
    reports = compare_logits(cache, samples, texts, live, work)
    tokens = int(cache.lengths["tokens"][samples].sum())
    del cache
    empty_folder(work).rmdir()
    return {
        "sentences": len(texts),
        "tokens": tokens,
        "taps": [asdict(row) for row in taps],
        "logits": {name: found.to_dict() for name, found in reports},
        "passed": passed(taps, reports),
    }


def passed(taps: Sequence[TapError], reports: Sequence[tuple[str, parity.ParityReport]]) -> bool:
    """Whether everything is within its tolerance and no label changed; NaN fails."""
    kept = all(row.changed == 0 for name, one in reports for row in one.rows if name != "unrounded")
    near = all(row.max_error <= row.allowed for row in taps)
    return kept and near and all(one.passed for _, one in reports)


def lines(family: str, dtype: str, figures: dict[str, Any]) -> list[str]:
    """Format one family and storage type: its worst tap, then its logits."""
    head = f"{family:<12}{dtype:<10}"
    worst = max(figures["taps"], key=lambda row: row["max_error"])
    exact = min(row["exact"] for row in figures["taps"])
    found = [
        f"{head}{'taps':<11}{1:>6}{worst['max_error']:>11.1e}{worst['allowed']:>11.1e}{'':>9}"
        f"  {worst['tap']} is worst; {exact:.2%} or more stored bit for bit"
    ]
    for name, one in figures["logits"].items():
        found += [
            f"{head}{name:<11}{row['batch']:>6}{row['max_error']:>11.1e}{one['tolerance']:>11.1e}"
            f"{row['changed']:>9}"
            for row in one["rows"]
        ]
    return found


@click.command()
@click.option("--samples", default=400, show_default=True, help="Tweets.")
@click.option("--family", "families", multiple=True, type=click.Choice(list(FAMILIES)))
def main(samples: int, families: tuple[str, ...]) -> None:
    """Compare cached, live and exported models; exit with 1 if a tolerance is exceeded."""
    folder = empty_folder(WORK / "equivalence")
    texts = write_tweets(samples, folder / "tweets.jsonl")
    data = data_config({"train": folder / "tweets.jsonl", "label_names": ("0", "1")})
    results: dict[str, dict[str, Any]] = {}
    table = [
        f"{'family':<12}{'stored':<10}{'compared':<11}{'batch':>6}{'max error':>11}"
        f"{'allowed':>11}{'changed':>9}"
    ]
    for family in families or FAMILIES:
        fetch, types = FAMILIES[family]
        backbone = fetch(WORK)
        live = Live(backbone)
        results[family] = {dtype: measure(backbone, dtype, data, texts, live) for dtype in types}
        for dtype, figures in results[family].items():
            table += lines(family, dtype, figures)
    good = all(figures["passed"] for types in results.values() for figures in types.values())
    table.append(f"equivalence {'passed' if good else 'FAILED'}: {len(texts)} tweets a row")
    report("equivalence", {"passed": good, "families": results}, table)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
