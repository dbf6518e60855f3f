"""GPT-2 and its heirs: pre-norm decoders. `drop` emits the embedded tokens (with positions)."""

from pipeline.backbones.family import Family, register_family

GPT2 = register_family(
    Family(
        name="gpt2",
        model_types=("gpt2", "gpt_neo", "gptj"),
        embeddings=("drop",),
        layers="h",
        final=("ln_f",),
    )
)

BLOOM = register_family(
    Family(
        name="bloom",
        model_types=("bloom", "falcon"),
        embeddings=("word_embeddings_layernorm", "word_embeddings"),
        layers="h",
        final=("ln_f",),
    )
)
