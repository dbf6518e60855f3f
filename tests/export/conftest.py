"""A cache, a backbone and a classifier of each kind, small and random."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny import DECODERS, SENTENCES, tiny_model, tiny_tokenizer

from cache import Cache
from pipeline.backbones import TextBackbone
from pipeline.extract import extract_inputs
from pipeline.fused.classifier import ClassifierJob, TrainedClassifier
from pipeline.fused.write import Facts
from pipeline.inputs import TextInput
from unipt import SideClassifier, SideNetworkConfig

logging.getLogger("torch.__trace").propagate = False  # captured, it takes 20 s a traced model
PAIRS = tuple(zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1], strict=True))


@dataclass
class Made:
    """What a `ClassifierJob` takes."""

    trained: TrainedClassifier
    backbone: TextBackbone
    cache: Cache

    def job(self, samples: int = 64) -> ClassifierJob:
        """What `export_model` takes."""
        return ClassifierJob(self.trained, self.backbone, self.cache, samples)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """Extract the tiny sentences with a random model and put a random classifier on top."""

    def build(
        model_type: str = "bert",
        *,
        pair: str = "none",
        labels: tuple[str, ...] | None = ("bad", "good"),
        unscale: tuple[float, float] = (1.0, 0.0),
        max_length: int = 12,
        store: str | dict[str, str] = "float16",
        pool: str = "none",
        memory: int = 0,
        **tokenizer: object,
    ) -> Made:
        torch.manual_seed(1)
        words = tiny_tokenizer(special=model_type not in DECODERS, **tokenizer)
        backbone = TextBackbone(
            tiny_model(model_type),
            words,
            name=f"tiny-{model_type}",
            max_length=max_length,
            pool=pool,
        )
        rows = {
            "none": [(TextInput(text),) for text in SENTENCES],
            "joint": [(TextInput(*texts),) for texts in PAIRS],
            "separate": [tuple(map(TextInput, texts)) for texts in PAIRS],
        }[pair]
        inputs = [(f"{i}/{j}", x) for i, row in enumerate(rows) for j, x in enumerate(row)]
        stored = store if isinstance(store, str) else "-".join(store.values())
        path = tmp_path / f"cache-{model_type}-{pair}-{stored}-{pool}"
        extract_inputs(backbone, inputs, path, store_dtype=store, block_tokens=64, force=True)
        taps = tuple(backbone.tap_modules)
        segments = 2 if pair == "separate" else 1
        *targets, anchor = (tap.shape[0] for tap in backbone.taps)
        side = SideNetworkConfig(
            widths=targets, anchor_width=anchor, side_width=8, out_width=anchor
        )
        classifier = SideClassifier(
            side=side, num_outputs=len(labels or "1"), segments=segments, memory=memory
        )
        if classifier.memory is not None:
            keys, values = classifier.memory.keys, classifier.memory.values
            keys.copy_(torch.randn_like(keys))
            values.copy_(torch.randn_like(values))
        trained = TrainedClassifier(
            classifier=classifier.eval(),
            taps=taps,
            labels=labels,
            segments=segments,
            unscale=unscale,
            rows=rows,
            facts=Facts(
                metrics={"test": {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}}},
                data={"task": "classification"},
                training={"epochs": 1},
            ),
        )
        return Made(trained, backbone, Cache.open(path))

    return build
