"""BERT and the encoders built like it: post-norm layers, so the last layer is the last state."""

from pipeline.backbones.family import Family, register_family

BERT = register_family(
    Family(
        name="bert",
        model_types=("bert", "ernie"),
        embeddings=("embeddings",),
        layers="encoder.layer",
    )
)

ELECTRA = register_family(
    Family(
        name="electra",
        model_types=("electra", "roformer"),
        embeddings=("embeddings_project", "embeddings"),  # brings a narrow embedding to full width
        layers="encoder.layer",
    )
)

MEGATRON_BERT = register_family(
    Family(
        name="megatron-bert",  # pre-norm: the encoder ends with its own LayerNorm
        model_types=("megatron-bert",),
        embeddings=("embeddings",),
        layers="encoder.layer",
        final=("encoder.ln",),
    )
)
