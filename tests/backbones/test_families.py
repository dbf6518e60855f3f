"""Conformance of every family: a cached state is what the named module emits for a text alone."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from tiny import DECODERS, LLAMAS, SENTENCES, WIDE_HEADS, tiny_model, tiny_tokenizer
from torch import nn

from pipeline.backbones import FAMILIES, BackboneError, Family, TextBackbone, register_family
from pipeline.inputs import TextInput

LAYERS = ["encoder.layer.00", "encoder.layer.01"]
POST_NORM = ["embeddings", *LAYERS]
PRE_NORM = [*POST_NORM, "final_norm"]
FAMILY_ROWS = [
    # model type, family, taps, module of the first layer, own settings
    ("bert", "bert", POST_NORM, "encoder.layer.0", {}),
    ("ernie", "bert", POST_NORM, "encoder.layer.0", {}),
    ("electra", "electra", POST_NORM, "encoder.layer.0", {}),
    ("roformer", "electra", POST_NORM, "encoder.layer.0", {}),
    ("albert", "albert", POST_NORM, "encoder.albert_layer_groups.0@0", {}),
    (
        "albert",
        "albert",
        [*POST_NORM, "encoder.layer.02", "encoder.layer.03"],
        "encoder.albert_layer_groups.0@0",
        {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    ("megatron-bert", "megatron-bert", PRE_NORM, "encoder.layer.0", {}),
    ("roberta", "roberta", POST_NORM, "encoder.layer.0", {"pad_token_id": 1}),
    ("xlm-roberta", "roberta", POST_NORM, "encoder.layer.0", {}),
    ("camembert", "roberta", POST_NORM, "encoder.layer.0", {}),
    ("mpnet", "roberta", POST_NORM, "encoder.layer.0", {}),
    ("distilbert", "distilbert", POST_NORM, "transformer.layer.0", {}),
    ("deberta", "deberta", POST_NORM, "encoder.layer.0", {}),
    ("deberta-v2", "deberta", POST_NORM, "encoder.layer.0", {}),
    ("deberta-v2", "deberta", POST_NORM, "encoder.layer.0", {"position_biased_input": False}),
    ("modernbert", "modernbert", PRE_NORM, "layers.0", {}),
    ("gpt2", "gpt2", PRE_NORM, "h.0", {}),
    ("gpt_neo", "gpt2", PRE_NORM, "h.0", {}),
    ("gptj", "gpt2", PRE_NORM, "h.0", {}),
    ("bloom", "bloom", PRE_NORM, "h.0", {}),
    ("falcon", "bloom", PRE_NORM, "h.0", {}),
    ("falcon", "bloom", PRE_NORM, "h.0", {"alibi": True}),
    *(
        (model_type, "llama", PRE_NORM, "layers.0", {})
        for model_type in (*LLAMAS, *WIDE_HEADS, "mixtral")
    ),
    ("mistral", "llama", PRE_NORM, "layers.0", {"sliding_window": 4}),
    ("gemma2", "llama", PRE_NORM, "layers.0", {"sliding_window": 4}),
    ("gemma3_text", "llama", PRE_NORM, "layers.0", {"sliding_window": 4}),
    ("gpt_neox", "gpt_neox", PRE_NORM, "layers.0", {}),
    ("opt", "opt", PRE_NORM, "decoder.layers.0", {}),
    (
        "opt",
        "opt",
        PRE_NORM,
        "decoder.layers.0",
        {"do_layer_norm_before": False, "word_embed_proj_dim": 8},
    ),
    (
        "nomic_bert",
        "generic",
        ["embeddings.word_embeddings", "layers.00", "layers.01"],
        "layers.0",
        {},
    ),
    (
        "phi",
        "generic",
        ["embed_tokens", "layers.00", "layers.01", "final_layernorm"],
        "layers.0",
        {},
    ),
    (
        "mobilebert",
        "generic",
        ["embeddings.word_embeddings", "encoder.layer.00", "encoder.layer.01"],
        "encoder.layer.0",
        {"trigram_input": False},
    ),
    (
        "olmo3",
        "generic",
        ["embed_tokens", "layers.00", "layers.01", "norm"],
        "layers.0",
        {"layer_types": ["full_attention", "full_attention"]},
    ),
]
_CLAIMED = {  # before a test registers its own; texts of two towers have test_clip_towers.py
    name
    for name in FAMILIES.names()
    if FAMILIES.get(name).modality == "text" and not FAMILIES.get(name).projection
}
INPUTS = [*(TextInput(text) for text in SENTENCES), TextInput("the dog", "a very good dog")]


def make(model_type: str, taps: list[str] | None = None, **own: object) -> TextBackbone:
    tokenizer = tiny_tokenizer(special=model_type not in DECODERS, padding_side="left")
    return TextBackbone(tiny_model(model_type, **own), tokenizer, name=model_type, taps=taps)


@pytest.mark.parametrize(("model_type", "family", "taps", "module", "own"), FAMILY_ROWS)
def test_packed_states_are_what_each_module_emits_for_the_text_alone(
    model_type: str, family: str, taps: list[str], module: str, own: dict[str, object]
) -> None:
    backbone = make(model_type, **own)
    assert (backbone.family, list(backbone.tap_modules)) == (family, taps)
    assert backbone.tap_modules[taps[1]] == module
    encoded = backbone.encode(INPUTS)
    states = backbone.forward(encoded)

    assert [(tap.name, (len(encoded.tokens), *tap.shape)) for tap in backbone.taps] == [
        (tap, tuple(state.shape)) for tap, state in states.items()
    ]
    for i, ids in enumerate(encoded.ids):
        alone, result = watch(backbone, encoded.select([i]).types, ids)
        rows = slice(encoded.offsets[i], encoded.offsets[i + 1])
        for tap, path in backbone.tap_modules.items():
            torch.testing.assert_close(states[tap][rows], alone[path], atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(states[taps[-1]][rows], result, atol=2e-4, rtol=2e-4)


def test_every_model_type_of_a_family_file_has_a_row() -> None:
    assert {row[0] for row in FAMILY_ROWS} >= _CLAIMED


def test_a_model_whose_padding_shows_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"MobileBertModel depend on the padding"):
        make("mobilebert")  # it joins each token's embedding with its neighbours'


def watch(backbone: TextBackbone, types: object, ids: object) -> tuple[dict, torch.Tensor]:
    """Run one unpadded text without a mask; return what each tapped module emitted, by call too."""
    seen: dict[str, torch.Tensor] = {}
    calls: Counter[str] = Counter()
    handles = []
    for path in {path.partition("@")[0] for path in backbone.tap_modules.values()}:

        def keep(_m: nn.Module, _i: object, output: object, path: str = path) -> None:
            state = (output[0] if isinstance(output, tuple) else output)[0]
            seen[path] = seen[f"{path}@{calls[path]}"] = state
            calls[path] += 1

        handles.append(backbone.model.get_submodule(path).register_forward_hook(keep))
    arguments = {"input_ids": torch.tensor(ids, dtype=torch.long)[None]}
    if types is not None:
        arguments["token_type_ids"] = torch.tensor(types, dtype=torch.long)[None]
    with torch.no_grad():
        result = backbone.model(**arguments).last_hidden_state[0]
    for handle in handles:
        handle.remove()
    return seen, result


def test_batches_of_one_length_are_packed_without_padding() -> None:
    backbone = make("bert")
    encoded = backbone.encode([TextInput("a dog"), TextInput("the cat")])
    assert encoded.lengths.tolist() == [4, 4]
    states = backbone.forward(encoded)["encoder.layer.01"]
    second = backbone.forward(encoded.select([1]))["encoder.layer.01"]
    torch.testing.assert_close(states[4:], second, atol=1e-5, rtol=1e-5)


def test_narrow_embeddings_are_tapped_at_full_width() -> None:
    assert {tap.shape for tap in make("electra").taps} == {(16,)}


def test_each_call_of_a_shared_layer_is_a_tap_of_its_own() -> None:
    backbone = make("albert", num_hidden_layers=3)
    assert list(backbone.tap_modules.values()) == [
        "encoder.embedding_hidden_mapping_in",
        *(f"encoder.albert_layer_groups.0@{k}" for k in range(3)),
    ]
    encoded = backbone.encode(INPUTS)
    states = backbone.forward(encoded)
    for before, after in pairwise(states.values()):
        assert (before - after).abs().max() > 0.01
    middle = make("albert", num_hidden_layers=3, taps=["encoder.layer.01"]).forward(encoded)
    assert list(middle) == ["encoder.layer.01"]
    assert torch.equal(middle["encoder.layer.01"], states["encoder.layer.01"])


def test_unknown_layout_lists_the_module_lists() -> None:
    model = tiny_model("nomic_bert")
    model.more = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(BackboneError, match=r"found 2.*layers \(2\), more \(2\)"):
        TextBackbone(model, tiny_tokenizer(), name="odd")


def test_a_generic_layer_that_is_called_twice_is_refused() -> None:
    model = tiny_model("nomic_bert")
    model.layers[1] = model.layers[0]
    with pytest.raises(BackboneError, match="not called exactly once"):
        TextBackbone(model, tiny_tokenizer(), name="odd")


def test_a_family_that_does_not_fit_says_what_is_missing() -> None:
    family = Family(name="x", model_types=("x",), embeddings=("nowhere",), layers="layers")
    with pytest.raises(BackboneError, match=r"none of the embedding modules \['nowhere'\]"):
        family.tap_modules(tiny_model("bert"))
    family = Family(name="x", model_types=("x",), embeddings=("embeddings",), layers="layers")
    with pytest.raises(BackboneError, match="no module list 'layers'"):
        family.tap_modules(tiny_model("bert"))


def test_a_model_type_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'bert' is already registered"):
        register_family(FAMILIES.get("bert"))
    with pytest.raises(KeyError, match=r"unknown backbone family.*'nope'; known: .*bert.*gpt2"):
        FAMILIES.get("nope")


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["encoder.layer.*"], LAYERS),
        (["encoder.layer.01", "emb*"], ["embeddings", "encoder.layer.01"]),
        (None, POST_NORM),
    ],
)
def test_taps_are_chosen_by_glob_in_model_order(patterns: list[str], chosen: list[str]) -> None:
    backbone = TextBackbone(tiny_model("bert"), tiny_tokenizer(), name="bert", taps=patterns)
    assert list(backbone.tap_modules) == chosen
    assert list(backbone.forward(backbone.encode(INPUTS))) == chosen


@pytest.mark.parametrize("patterns", [["encoder.layer.7"], ["embeddings", "x*"], []])
def test_an_unknown_tap_lists_the_known_ones(patterns: list[str]) -> None:
    with pytest.raises(BackboneError, match=r"known taps: embeddings, encoder\.layer\.00"):
        TextBackbone(tiny_model("bert"), tiny_tokenizer(), name="bert", taps=patterns)
