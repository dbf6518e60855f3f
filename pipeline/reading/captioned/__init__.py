"""How images or videos and their captions are read, whatever format their files have.

`gather` checks the rows and finds the media, `split` deals them out where a data set has no splits
of its own, `dataset` makes the examples.
"""
