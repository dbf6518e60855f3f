"""Texts, or pairs of texts, in; classes or a score out: `pipeline("text-classification")`.

Beside `UniPTConfig`'s, its options are `segments`, the towers that an example's texts go to (one,
or two that read the sentences of a pair separately, with one backbone), and `pairs`, whether a text
is a pair that is encoded jointly. B texts or pairs, L tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from pipeline.fused.labels_unipt import LabellingModel
from pipeline.fused.modeling_unipt import TEXT_AXES, Traced
from unipt.classifier import SideClassifier
from unipt.states import Outputs, States

USE = """from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

classify = pipeline("text-classification", "{name}", trust_remote_code=True)
print(classify({example}, truncation=True))

model = AutoModelForSequenceClassification.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
# model(..., output_confidence=True) also gives the weight of each tap"""


@dataclass
class UniPTOutput(SequenceClassifierOutput):
    """Logits [B, labels], the loss if labels were given, and the confidences [B, N] on request."""

    confidence: Tensor | None = None


class UniPTForSequenceClassification(LabellingModel):
    """Backbone, recorded taps and side model: text in, logits out."""

    auto = "AutoModelForSequenceClassification"
    tag = "text-classification"
    stages = ("predict",)
    side_model = SideClassifier

    @property
    def compares(self) -> bool:
        """Whether an example is two texts, each encoded on its own."""
        return len(self.config.segments) > 1

    def forward(  # noqa: PLR0917 (the order of arguments is that of transformers)
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_confidence: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> UniPTOutput | tuple[Tensor, ...]:
        """Classify a batch.

        Args:
            input_ids: [B, L] tokens.
            attention_mask: [B, L], 1 on tokens, 0 on padding; everything is a token if absent.
            token_type_ids: [B, L]; with two segments they tell the two sentences apart.
            labels: [B] class numbers, or targets of a regression.
            output_confidence: also return the confidence of each target tap.
            return_dict: False for a plain tuple.

        Returns:
            Logits [B, labels] (in the units of the target for a regression), loss, confidences.

        Raises:
            ValueError: there are two segments and no `token_type_ids`.
        """
        logits, confidence = self.classify(input_ids, attention_mask, token_type_ids)
        wanted = self.config.output_confidence if output_confidence is None else output_confidence
        output = UniPTOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            confidence=confidence if wanted else None,
        )
        return tuple(output.values()) if return_dict is False else output

    def classify(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits [B, labels] and confidences [B, N]."""
        found = self.outputs(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return found.values["logits"], found.confidence[self.config.segments[0]]

    def states(self, **inputs: Tensor | None) -> dict[str, States]:
        """Return the states of the text, or of each text of a pair."""
        if not self.compares:
            return super().states(**inputs)
        ids, types = inputs["input_ids"], inputs.get("token_type_ids")
        if ids is None or types is None:
            raise ValueError(
                "this model compares two sentences: give token_type_ids, 0 on the first and 1 "
                "on the second, as its tokenizer does for (text, text_pair)"
            )
        mask = inputs.get("attention_mask")
        tower = self.tower(self.config.segments[0])
        both = tower(*self._split(ids, torch.ones_like(ids) if mask is None else mask, types))
        halves = [{k: v.unflatten(0, (2, -1)) for k, v in part.items()} for part in both]
        return {
            name: States(*({k: v[number] for k, v in part.items()} for part in halves))
            for number, name in enumerate(self.config.segments)
        }

    def _split(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Turn joint rows [B, L] into rows [2B, W]: all first sentences, then all second ones.

        Each sentence is moved to the row's start; one longer than the backbone takes loses tokens
        before its closing special tokens, as truncation by the tokenizer does.
        """
        spec = self.tower(self.config.segments[0]).spec
        limit = spec["max_length"]
        width = torch.sym_min(ids.shape[1], limit)  # type: ignore[no-untyped-call]
        place = torch.arange(width, device=ids.device)[None]  # [1, W]
        rows, masks = [], []
        for segment in (0, 1):
            member = (mask.bool() & (types == segment)).long()  # [B, L]
            length = member.sum(1, keepdim=True)  # [B, 1]
            kept = length.clamp(max=limit)
            closing = place >= kept - spec["suffix"]
            source = member.argmax(1, keepdim=True) + place + closing * (length - kept)
            rows.append(ids.gather(1, source.clamp(max=ids.shape[1] - 1)))
            masks.append((place < kept).to(mask.dtype))
        valid = torch.cat(masks)  # [2B, W]
        return torch.cat(rows).masked_fill(valid == 0, spec["pad_id"]), valid

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type == "regression":
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).reshape(-1))
        return F.cross_entropy(logits, labels.reshape(-1))

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Return a record a text (or pair): its label and all probabilities, or its score."""
        logits = self.run(**self.tokenize(texts, pairs, cut=not self.compares)).values["logits"]
        if self.config.problem_type == "regression":
            return [{"score": row[0]} for row in logits.tolist()]
        return self.label_records(logits)

    @property
    def no_record(self) -> dict[str, Any]:
        """A record of `predict` that says nothing."""
        regression = self.config.problem_type == "regression"
        return {"score": None} if regression else super().no_record

    def inputs(self, given: Mapping[str, Sequence[Any]], *, extra: int = 0) -> dict[str, Tensor]:
        """Return the tokens of texts or pairs."""
        columns = [given[name] for name in self.config.segments]
        if self.compares:
            return self.tokenize(*columns, cut=False, extra=extra)
        (rows,) = columns
        if isinstance(rows[0], str):
            return self.tokenize(rows, extra=extra)
        texts, pairs = zip(*rows, strict=True)
        return self.tokenize(texts, pairs, extra=extra)

    def compared(self, outputs: Outputs) -> Tensor:
        """Return the logits; a regression's in units of its targets' deviation."""
        logits, side = outputs.values["logits"].float(), self.side
        if not (isinstance(side, SideClassifier) and side.units):
            return logits
        return (logits - side.shift) / side.scale

    def traced(self, towers: Sequence[str]) -> Traced:
        """Return the whole model."""
        return Traced("model", self.classify, ("logits", "confidence"), TEXT_AXES)

    def usage(self, name: str) -> str:
        """Return code that classifies a text or a pair."""
        pairs = self.compares or self.config.pairs
        example = '{"text": "One.", "text_pair": "Another."}' if pairs else '"One sentence."'
        return USE.format(name=name, example=example)


API = UniPTForSequenceClassification
