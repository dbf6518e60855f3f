"""DistilBERT: BERT's layers under another name, without token types."""

from pipeline.backbones.family import Family, register_family

DISTILBERT = register_family(
    Family(
        name="distilbert",
        model_types=("distilbert",),
        embeddings=("embeddings",),
        layers="transformer.layer",
    )
)
