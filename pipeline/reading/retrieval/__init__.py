"""How pictures or clips and their captions are read. See `pipeline.retrieval.data`.

One file a format; each turns its files into `rows.Reading`s by split. `gather` checks the rows and
finds the media, `split` deals them out where a data set has no splits of its own.
"""
