"""Galleries: folders of pictures or clips that an exported two-tower model can search.

`store.py` keeps an index folder, `embed.py` turns files into vectors, `sheet.py` draws answers.
"""
