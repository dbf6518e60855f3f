"""ALBERT: one group of weights, called once a layer (arXiv:1909.11942); a tap is one call."""

from pipeline.backbones.family import Family, register_family

ALBERT = register_family(
    Family(
        name="albert",
        model_types=("albert",),
        embeddings=("encoder.embedding_hidden_mapping_in",),  # at the width of the layers
        layers="encoder.albert_layer_groups",
        shared_layers=True,
    )
)
