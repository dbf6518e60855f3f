"""Tokenising in flat memory, cutting, batching by length."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SENTENCES, tiny_model, tiny_tokenizer

from pipeline.backbones import BackboneError, TextBackbone, length_batches
from pipeline.backbones import encoding as module
from pipeline.inputs import TextInput


def make(model_type: str = "bert", *, max_length: int | None = None, **options: object) -> object:
    tokenizer = tiny_tokenizer(**options)
    return TextBackbone(tiny_model(model_type), tokenizer, name="tiny", max_length=max_length)


def test_ids_equal_the_tokenizers_own_for_texts_and_pairs_mixed() -> None:
    backbone = make()
    inputs = [TextInput(a, b) for a in SENTENCES for b in (None, "a dog")]
    encoded = backbone.encode(inputs)
    for item, ids, start in zip(inputs, encoded.ids, encoded.offsets, strict=False):
        alone = tiny_tokenizer()(item.text, item.pair)
        assert ids.tolist() == alone["input_ids"]
        types = encoded.types[start : start + len(ids)]
        assert types.tolist() == alone["token_type_ids"]
    assert not encoded.truncated.any()
    assert (encoded.tokens.dtype, encoded.types.dtype) == (np.int32, np.int8)


def test_what_is_cut_is_flagged_and_keeps_its_special_tokens() -> None:
    encoded = make(max_length=7).encode(
        [TextInput("a dog"), TextInput("the cat sat on the mat"), TextInput("a dog", "cat " * 9)]
    )
    assert encoded.truncated.tolist() == [False, True, True]
    assert encoded.lengths.tolist() == [4, 7, 7]
    assert encoded.ids[1][-1] == 3
    assert encoded.ids[2][1:3].tolist() == tiny_tokenizer()("a dog")["input_ids"][1:3]


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [TextInput(text) for text in SENTENCES]
    whole = make().encode(inputs)
    monkeypatch.setattr(module, "_CHUNK", 2)
    parts = make().encode(iter(inputs))
    assert whole.tokens.tolist() == parts.tokens.tolist()
    assert whole.lengths.tolist() == parts.lengths.tolist()


def test_no_input_gives_an_empty_encoding() -> None:
    assert len(make().encode([])) == 0


def test_select_takes_any_order_and_repeats() -> None:
    encoded = make().encode([TextInput(text) for text in SENTENCES])
    chosen = encoded.select([3, 0, 3])
    assert [ids.tolist() for ids in chosen.ids] == [encoded.ids[i].tolist() for i in (3, 0, 3)]


@pytest.mark.parametrize(
    ("model_type", "limit"), [("bert", 66), ("roberta", 65), ("mpnet", 65), ("opt", 66)]
)
def test_max_length_is_bounded_by_the_models_positions(model_type: str, limit: int) -> None:
    assert make(model_type, model_max_length=1000).max_length == limit
    assert make(model_type, model_max_length=20).max_length == 20
    assert make(model_type, max_length=limit).max_length == limit
    with pytest.raises(BackboneError, match=f"max_length {limit + 1} .* to {limit}"):
        make(model_type, max_length=limit + 1)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "opt"])
def test_the_longest_allowed_input_runs(model_type: str) -> None:
    backbone = make(model_type, model_max_length=1000)
    encoded = backbone.encode([TextInput("dog " * 100), TextInput("a")])
    assert len(backbone.forward(encoded)["encoder.layer.01"]) == encoded.lengths.sum()


def test_max_length_must_leave_room_for_a_token() -> None:
    with pytest.raises(BackboneError, match="allowed are 4"):
        make(max_length=3)


def test_a_tokenizer_without_pad_token_takes_any_id() -> None:
    backbone = make("gpt2", special=False)
    assert backbone.tokenizer.pad_token_id is None
    assert backbone.pad_id == 0


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=60),
    bound=st.integers(1, 200),
    pass_tokens=st.integers(0, 100),
)
def test_batches_hold_each_sample_once_within_the_bound(
    lengths: list[int], bound: int, pass_tokens: int
) -> None:
    table = np.array(lengths, dtype=np.int64)
    samples = np.arange(len(lengths))[::2]
    batches = list(length_batches(samples, table, bound, pass_tokens=pass_tokens))
    assert sorted(np.concatenate([*batches, []]).astype(int).tolist()) == samples.tolist()
    for batch in batches:
        longest = table[batch].max()
        assert len(batch) == 1 or longest * len(batch) <= bound
        assert longest * len(batch) - table[batch].sum() <= pass_tokens or len(batch) == 1
    longest_first = [table[batch].max() for batch in batches]
    assert longest_first == sorted(longest_first, reverse=True)
