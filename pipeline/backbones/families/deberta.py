"""DeBERTa, all versions: disentangled attention over relative positions.

Where a checkpoint has the convolution beside layer 0 (v2 xlarge), `encoder.layer.00` is what the
layer emits, before the convolution joins.
"""

from pipeline.backbones.family import Family, register_family

DEBERTA = register_family(
    Family(
        name="deberta",
        model_types=("deberta", "deberta-v2"),
        embeddings=("embeddings",),
        layers="encoder.layer",
    )
)
