"""Texts in, a tag for each token out: `pipeline("token-classification")`.

B texts, L tokens, C tags. `predict` tags the words of a text, as the training did.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import TokenClassifierOutput

from pipeline.fused.labels_unipt import LabellingModel
from pipeline.fused.modeling_unipt import TEXT_AXES, Traced
from unipt.states import Outputs
from unipt.tagger import SideTagger
from unipt.words import Words, cuts, pooled_words, word_spans

USE = """from transformers import AutoModelForTokenClassification, pipeline

tag = pipeline("token-classification", "{name}", trust_remote_code=True)
print(tag("Ada Lovelace was born in London."))

model = AutoModelForTokenClassification.from_pretrained("{name}", trust_remote_code=True)
print(model.predict(["Ada Lovelace was born in London ."]))  # the tags of words between spaces"""


class UniPTForTokenClassification(LabellingModel):  # type: ignore[no-untyped-call]
    """A backbone, its recorded taps and a side model: text in, logits of each token out."""

    auto = "AutoModelForTokenClassification"
    tag = "token-classification"
    stages = ("predict",)
    side_model = SideTagger
    compares = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> TokenClassifierOutput:
        """Tag tokens [B, L]; `labels` [B, L], -100 where there is none, give a loss."""
        logits = self.classify(input_ids, attention_mask, token_type_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return TokenClassifierOutput(loss=loss, logits=logits)

    def classify(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of every token, [B, L, C]; those of padding mean nothing."""
        found = super().outputs(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return found.values["logits"]

    def outputs(self, **inputs: Tensor | None) -> Outputs:
        """Return the logits of the valid tokens, packed [T, C]."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        if ids is None:
            raise ValueError("give input_ids, [B, L]")
        return packed(super().outputs(**inputs).values["logits"], mask)

    def predict(self, texts: Sequence[str], pairs: None = None) -> list[dict[str, Any]]:
        """Return a record a text: its words (between spaces) and the tag of each.

        A long text is read in overlapping windows, as in training. A word that the tokenizer knows
        nothing of, or cuts off, has the tag O, or the first one.
        """
        words = [text.split() for text in texts]
        parts = [
            (row, cut)
            for row, each in enumerate(words)
            for cut in cuts(len(each), self.config.max_words, self.config.overlap)
        ]
        tags: list[list[str]] = [[] for _ in words]
        for some in (parts[n : n + len(texts)] for n in range(0, len(parts), len(texts) or 1)):
            said = self._tags([words[row][cut.start : cut.stop] for row, cut in some])
            for (row, cut), given in zip(some, said, strict=True):
                tags[row] += given[cut.low : cut.high]
        return [{"tokens": w, "tags": t} for w, t in zip(words, tags, strict=True)]

    def _tags(self, words: Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the tag of each word of each window."""
        given = self.tokenizer(
            [" ".join(each) for each in words],
            truncation=True,
            padding=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        spans = given.pop("offset_mapping")
        names = ("input_ids", "attention_mask", "token_type_ids")
        found = self.run(**{name: given[name] for name in names if name in given})
        places = [torch.tensor(word_spans(each)) for each in words]  # [2, words] each
        starts, ends = torch.cat(places, 1)
        counts = torch.tensor([len(each) for each in words])
        sample = torch.repeat_interleave(torch.arange(len(words)), counts)
        logits, seen = pooled_words(
            found.values["logits"].cpu(),
            spans[given["attention_mask"].bool()],
            found.offsets["logits"].cpu(),
            Words(starts, ends, sample),
            self.config.word_pooling,
        )
        labels = self.labels
        blank = labels.index("O") if "O" in labels else 0
        best = torch.where(seen, logits.argmax(1), blank)
        parts = torch.split(best, counts.tolist())
        return [[labels[tag] for tag in part.tolist()] for part in parts]

    @property
    def no_record(self) -> dict[str, Any]:
        """A record of `predict` that says nothing."""
        return {"tokens": None, "tags": None}

    def inputs(self, given: Mapping[str, Sequence[Any]], *, extra: int = 0) -> dict[str, Tensor]:
        """Return the tokens of texts."""
        return self.tokenize(given["text"], extra=extra)

    def compared(self, outputs: Outputs) -> Tensor:
        """Return the logits of each text's tokens, one after another, zeros behind the last."""
        logits, bounds = outputs.values["logits"].float(), outputs.offsets["logits"].tolist()
        longest, count = self.tower("text").longest, logits.shape[1]
        rows = logits.new_zeros(len(bounds) - 1, longest, count)
        for row, (start, stop) in enumerate(itertools.pairwise(bounds)):
            rows[row, : stop - start] = logits[start:stop]
        return rows.flatten(1)

    def answers(self, found: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return a number that is equal for equal tags of all tokens."""
        tags = found.view(len(found), -1, len(self.labels)).argmax(2)
        weights = torch.arange(1, tags.shape[1] + 1) * 2_654_435_761 % (1 << 31)
        numbers: Tensor = (tags * weights).sum(1)
        return numbers

    def traced(self, towers: Sequence[str]) -> Traced:
        """Return the whole model."""
        return Traced("model", self.classify, ("logits",), TEXT_AXES)

    def from_traced(
        self,
        towers: Sequence[str],
        run: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        inputs: Mapping[str, Tensor],
    ) -> Outputs:
        """Return the logits of the valid tokens by a traced artefact."""
        return packed(run(inputs)["logits"], inputs.get("attention_mask"))

    def usage(self, name: str) -> str:
        """Return code that tags a text."""
        return USE.format(name=name)


def packed(logits: Tensor, mask: Tensor | None) -> Outputs:
    """Return padded logits [B, L, C] as packed ones of the valid tokens."""
    valid = torch.ones(logits.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    bounds = F.pad(valid.sum(1).cumsum(0), (1, 0))
    return Outputs({"logits": logits[valid.to(logits.device)]}, {"logits": bounds})


API = UniPTForTokenClassification
