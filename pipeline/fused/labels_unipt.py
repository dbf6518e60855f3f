"""Logits as labels with their probabilities: what every classifying API says of an example."""

from typing import Any

from torch import Tensor

from pipeline.fused.modeling_unipt import UniPTModel


class LabellingModel(UniPTModel):  # type: ignore[no-untyped-call]
    """A model whose outputs are logits of the classes in `config.id2label`."""

    @property
    def labels(self) -> list[str]:
        """The class names, in order."""
        known: Any = self.config.id2label
        return [str(known[number]) for number in range(len(known))]

    @property
    def no_record(self) -> dict[str, Any]:
        """A record of `predict` that says nothing."""
        return {"label": None, "score": None, "probabilities": dict.fromkeys(self.labels)}

    def label_records(self, logits: Tensor) -> list[dict[str, Any]]:
        """Return a record a row of logits [B, C]: its label, that one's and all probabilities."""
        names = self.labels
        rows = logits.float().softmax(-1).tolist()
        best = [max(range(len(row)), key=row.__getitem__) for row in rows]
        return [
            {
                "label": names[at],
                "score": row[at],
                "probabilities": dict(zip(names, row, strict=True)),
            }
            for at, row in zip(best, rows, strict=True)
        ]
