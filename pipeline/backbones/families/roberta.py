"""RoBERTa and its heirs: BERT's modules, with positions counted from `pad_token_id + 1`."""

from pipeline.backbones.family import Family, register_family

ROBERTA = register_family(
    Family(
        name="roberta",
        model_types=("roberta", "xlm-roberta", "camembert", "mpnet"),
        embeddings=("embeddings",),
        layers="encoder.layer",
        offset_positions=True,
    )
)
