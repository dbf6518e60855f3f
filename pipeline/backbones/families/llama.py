"""Llama and the decoders built like it: rotary positions, RMSNorm before each block and last."""

from pipeline.backbones.family import Family, register_family

LLAMA = register_family(
    Family(
        name="llama",
        model_types=(
            *("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
            *("phi3", "olmo", "olmo2", "smollm3", "starcoder2", "stablelm", "granite", "cohere"),
        ),
        embeddings=("embed_tokens",),
        layers="layers",
        final=("norm",),
    )
)
