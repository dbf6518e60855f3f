"""Galleries: folders of images or videos that an exported model can search.

`store.py` keeps an index folder, `embed.py` turns files into vectors, `sheet.py` draws answers.
"""
