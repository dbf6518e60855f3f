"""The export of a classification or regression run: one text backbone, one side classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from cache import Cache
from pipeline.backbones import TextBackbone
from pipeline.fused import parity
from pipeline.fused.artefacts import TEXT_AXES, Form, Runner, Traceable, eager_runner
from pipeline.fused.build import build_fused, build_tokenizer, model_inputs
from pipeline.fused.card import Card, metrics_table, render_card
from pipeline.fused.parity import ParityReport, Part
from pipeline.fused.replay import Row, cached_logits, choose_samples
from pipeline.fused.write import Facts, check_backbone, number_types, storage_type
from unipt.classifier import SideClassifier

USE = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

classify = pipeline("text-classification", "{name}", trust_remote_code=True)
print(classify({example}, truncation=True))

model = AutoModelForSequenceClassification.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
```"""


@dataclass(frozen=True, kw_only=True)
class TrainedClassifier:
    """A trained classifier with what an exported folder says about it.

    Attributes:
        classifier: the trained side classifier.
        taps: its taps, in order; the last one is the anchor.
        labels: class names; None for a regression.
        segments: 2 if an example is two sentences encoded separately, else 1.
        unscale: deviation and mean of a regression's targets, the measure of its errors; (1, 0)
            for classes.
        rows: inputs of examples to replay.
        facts: for the model card.
    """

    classifier: SideClassifier
    taps: tuple[str, ...]
    labels: tuple[str, ...] | None
    segments: int
    unscale: tuple[float, float] = (1.0, 0.0)
    rows: Sequence[Row] = ()
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True)
class ClassifierJob:
    """A classifier, its backbone with the taps of the cache, and the cache it was trained from.

    `samples` of the examples are replayed; see `pipeline.fused.write.Job` for the methods.
    """

    trained: TrainedClassifier
    backbone: TextBackbone
    cache: Cache
    samples: int = 64
    model_type: str = "unipt"
    outputs: str = "logits"

    @cached_property
    def _chosen(self) -> tuple[list[Row], NDArray[np.int64]]:
        return choose_samples(self.cache, self.trained.rows, samples=self.samples)

    def check(self) -> None:
        """Compare the backbone with the cache's; find samples to replay."""
        check_backbone(self.backbone, self.cache)
        self.trained.classifier.eval()
        _ = self._chosen

    def build(self) -> tuple[Any, Any]:
        """Return the fused model and its tokenizer."""
        trained = self.trained
        fused = build_fused(
            self.backbone,
            trained.classifier,
            trained.taps,
            segments=trained.segments,
            labels=trained.labels,
            storage_type=storage_type(self.cache),
            rms=self.cache.rms,
        )
        return fused, build_tokenizer(self.backbone, trained.segments)

    def parts(self, model: Any, tokenizer: Any, folder: Path, forms: Sequence[Form]) -> list[Part]:
        """Return the check of the logits."""
        rows, samples = self._chosen

        def encode(positions: Sequence[int], extra: int) -> dict[str, Tensor]:
            return model_inputs(tokenizer, [rows[i] for i in positions], model.config, extra=extra)

        traced = Traceable(
            name="model",
            module=_Logits(model),
            example=encode(range(2) if len(rows) > 1 else (0, 0), 0),
            outputs=("logits", "confidence"),
            axes=TEXT_AXES,
        )
        runners: dict[str, Runner] = {"transformers": eager_runner(lambda x: model(**x).logits)}
        runners |= {form: traced.write(form, folder) for form in forms}
        trained = self.trained
        logits = cached_logits(self.cache, trained.classifier, trained.taps, samples)
        types = number_types(self.cache, model.backbone)
        return [parity.logits_part(runners, encode, logits, types=types, unscale=trained.unscale)]

    def modules(self, model: Any) -> dict[str, nn.Module]:
        """Return the backbone and the side classifier."""
        return {"backbone (frozen)": model.backbone, "side classifier": model.side_classifier}

    def card(self, name: str, parameters: Mapping[str, int], report: ParityReport) -> str:
        """Return the model card."""
        trained, backbone = self.trained, Path(self.backbone.name).name
        pairs = trained.segments == 2 or any(
            getattr(row[0], "pair", None) is not None for row in trained.rows
        )
        example = '{"text": "One.", "text_pair": "Another."}' if pairs else '"One sentence."'
        labels = trained.labels
        kind = f"one of {len(labels)} classes ({', '.join(labels)})" if labels else "a score"
        return render_card(
            Card(
                name=name,
                task="text-classification",
                backbones=(backbone,),
                summary=f"A frozen {backbone} with a UniPT side classifier trained on its cached "
                f"activations: {'two texts' if pairs else 'a text'} in, {kind} out.",
                use=USE.format(name=name, example=example),
                notes="The model's code stands in this folder and needs torch and transformers "
                "only. Pass `output_confidence=True` to the model for the weight it gives to each "
                "tap.",
                metrics=metrics_table(trained.facts.metrics),
                taps={"": trained.taps},
                parameters=parameters,
                data=trained.facts.data,
                training=trained.facts.training,
                fingerprints={"": self.cache.fingerprint.mapping},
                parity=report.render(),
            )
        )


class _Logits(nn.Module):
    """Tensors in, tensors out: the signature of the traced artefacts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            output_confidence=True,
        )
        return output.logits, output.confidence
