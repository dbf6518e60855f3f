"""The fused model: a frozen backbone, its side classifier and its tokenizer as one ordinary model.

`configuration_unipt.py` and `modeling_unipt.py` are written into every exported folder, together
with the files of `unipt/` that they need; the other modules build, check and describe the folder.
"""
