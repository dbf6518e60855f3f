"""GPT-NeoX and Pythia: parallel attention and MLP, rotary positions, a final LayerNorm."""

from pipeline.backbones.family import Family, register_family

GPT_NEOX = register_family(
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        embeddings=("emb_dropout", "embed_in"),
        layers="layers",
        final=("final_layer_norm",),
    )
)
