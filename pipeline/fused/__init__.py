"""The fused models: frozen backbones, their side networks and their preprocessing as one model.

`configuration_*.py`, `modeling_*.py` and `backbone_unipt.py` are written into exported folders,
together with the files of other packages that they need (`package.py`); `classifier.py` and
`retrieval.py` are the exports of the two kinds of runs, the other modules what they share.
"""
