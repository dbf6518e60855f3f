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
from pipeline.data import Dataset, Example, Labelled
from pipeline.extract import extract_inputs
from pipeline.fused.job import Facts, Job
from pipeline.inputs import TextInput
from pipeline.reading.config import TextData
from pipeline.systems import Setup, system_of
from pipeline.systems.inference import infer
from pipeline.systems.locate import locate
from pipeline.systems.memo import Memo
from pipeline.systems.taps import select
from unipt import SideClassifier, SideNetworkConfig, SideTower

logging.getLogger("torch.__trace").propagate = False  # captured, it takes 20 s a traced model
PAIRS = tuple(zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1], strict=True))


@dataclass
class Made:
    """What a `Job` of texts takes."""

    setup: Setup
    model: SideClassifier
    backbone: TextBackbone

    @property
    def cache(self) -> Cache:
        """The one cache."""
        return next(iter(self.setup.caches.values()))

    @property
    def rows(self) -> list[tuple[TextInput, ...]]:
        """Inputs of the examples."""
        return [example.inputs for example in self.setup.dataset.split("train").examples]

    def job(self, samples: int = 64, backbone: TextBackbone | None = None) -> Job:
        """What `export_model` takes."""
        return Job(
            setup=self.setup,
            model=self.model,
            backbones=dict.fromkeys(self.setup.caches, backbone or self.backbone),
            samples=samples,
            facts=Facts(
                metrics={"test": {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}}},
                data={"task": "classification"},
                training={"epochs": 1},
            ),
        )

    def logits(self) -> torch.Tensor:
        """What the side model says of the cached examples."""
        found = infer(
            self.model,
            self.setup.splits["train"].clean,
            self.setup.caches,
            self.setup.taps,
            batch_size=3,
            device=torch.device("cpu"),
        )
        return found.values["logits"]


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
        kernel_keys: int = 0,
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
        towers = ("first", "second") if pair == "separate" else ("text",)
        caches = dict.fromkeys(towers, Cache.open(path))
        task = "classification" if labels else "regression"
        examples = [
            Example(str(number), row, number % len(labels) if labels else float(number))
            for number, row in enumerate(rows)
        ]
        dataset = Dataset(
            splits={"train": Labelled(examples, towers)},
            config=TextData(task=task, train=tmp_path / "none.tsv"),
            labels=labels,
        )
        taps = {name: select(cache, None, "taps") for name, cache in caches.items()}
        *targets, anchor = (tap.shape[0] for tap in backbone.taps)
        tower = SideTower(
            side=SideNetworkConfig(
                widths=targets, anchor_width=anchor, side_width=8, out_width=anchor
            ),
            taps=tuple(backbone.tap_modules),
            axis=taps[towers[0]].axis,
            pooling="mean",
            normalize=False,
        )
        classifier = SideClassifier(
            tower=tower,
            segments=towers,
            num_outputs=len(labels or "1"),
            kernel_keys=kernel_keys,
            units=labels is None,
        )
        if labels is None:
            classifier.scale.fill_(unscale[0])
            classifier.shift.fill_(unscale[1])
        if classifier.kernel is not None:
            keys, values = classifier.kernel.keys, classifier.kernel.values
            keys.copy_(torch.randn_like(keys))
            values.copy_(torch.randn_like(values))
        system = system_of(task)
        setup = Setup(
            system=system,
            dataset=dataset,
            task=system.task(dataset),
            caches=caches,
            taps=taps,
            splits={"train": locate(dataset, "train", caches, dict.fromkeys(towers, "text"))},
            device=torch.device("cpu"),
            memo=Memo(),
        )
        return Made(setup, classifier.eval(), backbone)

    return build
