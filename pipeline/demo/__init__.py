"""The whole way on real weights and real text, for a newcomer: `unipt demo`."""
