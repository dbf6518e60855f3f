"""The tokenizer of an exported folder: it turns texts into what the cache was computed from.

For sentences that the backbone reads one by one (`segments` = 2) the pair template is rewritten:
(text, text_pair) becomes the two sentences one after the other, each with its own special tokens,
the first with token type 0 and the second with 1; the model takes them apart again. Rewriting costs
nothing at run time.
"""

import copy
from typing import Any

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from pipeline.errors import PipelineError

PROBES = (("a", "b"), ("one more probe", "and another one, longer"), ("", "x"))


class TokenizerError(PipelineError, ValueError):
    """The tokenizer cannot be shipped with this model."""


def joint_tokenizer(tokenizer: Any, *, max_length: int) -> Any:
    """Return a copy for single texts and jointly encoded pairs, cut at `max_length` tokens."""
    found = copy.deepcopy(tokenizer)
    found.model_max_length = max_length
    _pad_right(found)
    return found


def separate_tokenizer(tokenizer: Any, *, max_length: int) -> Any:
    """Return a copy whose pairs are two sentences with special tokens of their own.

    Args:
        tokenizer: the backbone's fast tokenizer.
        max_length: longest sentence, in tokens; a pair may have twice as many.

    Raises:
        TokenizerError: the tokenizer is not a fast one, or its special tokens do not stand at the
            start and the end of a sentence only.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        raise TokenizerError(
            f"{type(tokenizer).__name__} has no pair template that could be rewritten for "
            "sentences encoded separately: export needs a fast tokenizer (tokenizer.json); or "
            "encode pairs jointly (pair=joint)"
        )
    before, after = special_tokens(tokenizer)
    names = dict.fromkeys(core.id_to_token(i) for i in (*before, *after))
    core = type(core).from_str(core.to_str())
    core.no_truncation()
    core.no_padding()
    sides = [
        [*(f"{core.id_to_token(i)}:{t}" for i in before), f"${'AB'[t]}:{t}"]
        + [f"{core.id_to_token(i)}:{t}" for i in after]
        for t in (0, 1)
    ]
    core.post_processor = processors.TemplateProcessing(
        single=sides[0],
        pair=[*sides[0], *sides[1]],
        special_tokens=[(name, core.token_to_id(name)) for name in names],
    )
    found: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        model_max_length=2 * max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **tokenizer.special_tokens_map,
    )
    _pad_right(found)
    check_separate(found, tokenizer)
    return found


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids a tokenizer puts before and after a single text.

    Raises:
        TokenizerError: they do not enclose the text's own tokens.
    """
    for text in ("a", "x", "the"):
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        full = tokenizer(text)["input_ids"]
        extra = len(full) - len(bare)
        for start in range(extra + 1) if bare else ():
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
    raise TokenizerError(
        f"the special tokens of this {type(tokenizer).__name__} do not enclose a text's own "
        "tokens, so its pair template cannot be rewritten; encode pairs jointly (pair=joint)"
    )


def check_separate(separate: Any, original: Any) -> None:
    """Compare a rewritten tokenizer with the one it stands for.

    Raises:
        TokenizerError: a pair is not the two texts as `original` encodes them, types 0 and 1.
    """
    for first, second in PROBES:
        sides = [original(text)["input_ids"] for text in (first, second)]
        found = separate(first, second)
        types = [t for t, side in enumerate(sides) for _ in side]
        if found["input_ids"] != sides[0] + sides[1] or found["token_type_ids"] != types:
            raise TokenizerError(
                f"the pair template of this {type(original).__name__} cannot be rewritten: "
                f"({first!r}, {second!r}) gives {found['input_ids']}, not {sides[0]} + {sides[1]}; "
                "encode pairs jointly (pair=joint)"
            )


def _pad_right(tokenizer: Any) -> None:
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise TokenizerError(
            f"this {type(tokenizer).__name__} has no pad, end or unknown token to fill batches "
            "with: set its pad_token"
        )
