"""Tiny random models and tokenizers, one for each family: nothing is downloaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [
    *("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree"),
    *("good", "bad", "film", "was", "is", "not", "very"),
]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
SENTENCES = (
    "the cat sat on the mat",
    "a dog",
    "the film was not very good the film was bad",
    "run",
    "the tree is under the cat and the dog is on the tree the mat was very very good",
)
LLAMAS = (
    *("llama", "qwen2", "mistral", "phi3", "olmo", "olmo2", "smollm3", "starcoder2", "stablelm"),
    *("granite", "cohere"),
)
WIDE_HEADS = ("gemma", "gemma2", "gemma3_text", "qwen3")
DECODERS = (
    *LLAMAS,
    *WIDE_HEADS,
    *("mixtral", "gpt2", "gpt_neo", "gptj", "opt", "gpt_neox", "bloom", "falcon", "phi"),
)

_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_OWN: Mapping[str, dict[str, Any]] = {
    "electra": {"embedding_size": 8},
    "albert": {"embedding_size": 8},
    "distilbert": {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 66},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 4},
    "gptj": {"rotary_dim": 4},
    "roformer": {"embedding_size": 8},
    "mobilebert": {"embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8},
    "mixtral": {"num_key_value_heads": 1, "num_local_experts": 2},
    **{name: {"num_key_value_heads": 1} for name in LLAMAS},
    **{name: {"num_key_value_heads": 1, "head_dim": 8} for name in WIDE_HEADS},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "modernbert": {"cls_token_id": 2, "sep_token_id": 3, "global_attn_every_n_layers": 2},
}


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """A configuration of two layers, 16 wide."""
    if model_type in ("distilbert", "gpt2"):  # their own names, mapped from the usual ones
        known = {k: v for k, v in _SMALL.items() if k in ("vocab_size", "pad_token_id")}
        if model_type == "distilbert":
            known["max_position_embeddings"] = 66
    else:
        known = dict(_SMALL)
    tokens = {"bos_token_id": 2, "eos_token_id": 3}
    return AutoConfig.for_model(
        model_type, **{**known, **tokens, **_OWN.get(model_type, {}), **overrides}
    )


def tiny_model(model_type: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A random model with weights large enough that every layer matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(tiny_config(model_type, **overrides))
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.4)
            elif "norm" in name.lower():
                torch.nn.init.normal_(weight, mean=1.0, std=0.2)
    return model.eval().requires_grad_(False)


def tiny_tokenizer(*, special: bool = True, **options: Any) -> Any:
    """A fast word tokenizer; unknown words fall apart into nothing but `<unk>`.

    Args:
        special: wrap inputs as `<s> A </s> B </s>` with token types; else add nothing and have no
            pad token, as decoder-only models do.
        options: passed on to the tokenizer.
    """
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, *LETTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:1 </s>:1",
            special_tokens=[("<s>", 2), ("</s>", 3)],
        )
    named = {"unk_token": "<unk>", "eos_token": "</s>", "model_max_length": 64}
    if special:
        named["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        named |= {"pad_token": "<pad>", "bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **{**named, **options})


def save_tiny(model_type: str, folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Save a tiny model with its tokenizer to `folder`, as `load_backbone` reads it."""
    tiny_model(model_type, seed=seed, **overrides).save_pretrained(folder)
    tiny_tokenizer(special=model_type not in DECODERS).save_pretrained(folder)
    return folder
