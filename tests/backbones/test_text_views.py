"""Corrupted views of texts, and taps that emit one vector a text."""

import numpy as np
import pytest
import torch
from tiny import SENTENCES, WORDS, tiny_model, tiny_tokenizer
from torch import nn

from pipeline.backbones import FAMILIES, BackboneError, Family, TextBackbone
from pipeline.backbones.corruption import Corruption
from pipeline.inputs import TextInput

MASK = 4 + len(WORDS)
INPUTS = [TextInput(text) for text in SENTENCES]


def make(**options: object) -> TextBackbone:
    """Make a tiny BERT whose tokenizer uses the letter `a` as its mask token."""
    tokenizer = tiny_tokenizer(**{"mask_token": "a", **options})
    return TextBackbone(tiny_model("bert"), tokenizer, name="tiny")


def test_view_zero_is_clean_and_a_view_depends_on_nothing_but_text_and_number() -> None:
    backbone = make()
    clean = backbone.encode(INPUTS)
    views = [0, 1, 2, 0, 3]
    mixed = backbone.encode(INPUTS, views)
    assert mixed.ids[0].tolist() == clean.ids[0].tolist()
    assert mixed.ids[3].tolist() == clean.ids[3].tolist()
    assert mixed.ids[4].tolist() != clean.ids[4].tolist()
    alone = backbone.encode([INPUTS[4]], [3])
    assert alone.ids[0].tolist() == mixed.ids[4].tolist()
    again = backbone.encode(INPUTS[::-1], views[::-1])
    assert [ids.tolist() for ids in again.ids[::-1]] == [ids.tolist() for ids in mixed.ids]
    assert len(mixed.types) == len(mixed.tokens) == mixed.lengths.sum()


def test_the_shares_are_those_of_vse_infinity() -> None:
    ids = np.concatenate([[2], np.full(60_000, 10), [3]]).astype(np.int32)
    corruption = Corruption.of(make().tokenizer, 64, "tiny")
    result, kept = corruption._corrupt(ids, np.random.default_rng(0))
    assert (result[[0, -1]].tolist(), kept[[0, -1]].all()) == ([2, 3], True)
    n = len(ids) - 2
    masked = (result == corruption.mask) & kept
    changed = (result != ids) & kept & ~masked
    assert masked.sum() / n == pytest.approx(0.2 * 0.5, abs=0.01)
    assert changed.sum() / n == pytest.approx(0.2 * 0.1, abs=0.005)
    assert (~kept).sum() / n == pytest.approx(0.2 * 0.4, abs=0.01)
    assert not np.isin(
        result[1:-1], corruption.special[corruption.special != corruption.mask]
    ).any()


def test_a_text_keeps_its_last_token() -> None:
    corruption = Corruption.of(make().tokenizer, 64, "tiny")
    dropped = type("Drops", (), {"random": lambda _, n: np.full(n, 0.19), "choice": lambda *_: 9})()
    result, kept = corruption._corrupt(np.array([10, 11], np.int32), dropped)
    assert kept.tolist() == [True, False]
    assert result[kept].tolist() == [10]


def test_a_tokenizer_without_a_mask_token_is_refused_for_views_only() -> None:
    backbone = make(mask_token=None)
    assert backbone.encode(INPUTS, [0] * len(INPUTS)).lengths.min() > 0
    with pytest.raises(BackboneError, match=r"no mask token.*--views 1"):
        backbone.encode(INPUTS, [1] * len(INPUTS))


class Projected(nn.Module):
    """A BERT with a projection of its first state, as CLIP's text tower has one."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = tiny_model("bert")
        self.config = self.bert.config
        self.bert.config.model_type = "projected"
        self.projection = nn.Linear(16, 6)

    def get_input_embeddings(self) -> nn.Module:
        return self.bert.get_input_embeddings()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[object, ...]:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
        return (self.projection(states[:, 0]), states)


def test_what_is_emitted_once_a_text_is_a_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(
        name="projected",
        model_types=("projected",),
        embeddings=("bert.embeddings",),
        layers="bert.encoder.layer",
        final=("projection",),
    )
    monkeypatch.setitem(FAMILIES._values, "projected", family)
    names = ["encoder.layer.01", "final_norm"]
    backbone = TextBackbone(Projected().eval(), tiny_tokenizer(), name="projected", taps=names)
    assert [(tap.kind, tap.shape) for tap in backbone.taps] == [("tokens", (16,)), ("vector", (6,))]
    encoded = backbone.encode(INPUTS)
    states = backbone.forward(encoded, torch.float16)
    assert states["encoder.layer.01"].shape == (encoded.lengths.sum(), 16)
    assert states["final_norm"].shape == (len(INPUTS), 6)
    assert states["final_norm"].dtype == torch.float16
    prepared = backbone.prepare(encoded)
    again = backbone.forward(encoded, prepared=prepared)
    torch.testing.assert_close(again["final_norm"].half(), states["final_norm"])
    torch.testing.assert_close(backbone.run(prepared)[0], again["final_norm"])
