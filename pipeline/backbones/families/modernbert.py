"""ModernBERT: a pre-norm encoder with rotary positions; the final norm is the last state."""

from pipeline.backbones.family import Family, register_family

MODERNBERT = register_family(
    Family(
        name="modernbert",
        model_types=("modernbert",),
        embeddings=("embeddings",),
        layers="layers",
        final=("final_norm",),
    )
)
