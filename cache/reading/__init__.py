"""The reader of a cache: its index, its chunks, and blocks of them held in memory."""
