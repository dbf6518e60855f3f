"""The fused model: frozen backbones, their side model and their preprocessing as one model.

`configuration_unipt.py`, `modeling_unipt.py`, `tower_unipt.py`, `media_unipt.py` and one file of
`api/` are written into every exported folder, together with the files of other packages that they
need (`package.py`). All other modules build it, compare it with the cache, write and load it.
"""
