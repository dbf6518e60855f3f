"""Images and videos from files: what the image and video towers read, and how it is prepared.

`images.py` and `transform.py` and what `video.py` imports need only Pillow, NumPy and PyTorch (and
PyAV for containers of FFmpeg), import each other as `from .name import thing`, and ship unchanged
beside an exported model.
"""
