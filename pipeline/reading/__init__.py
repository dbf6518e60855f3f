"""How examples are read: configuration, tables, sources, labels, splits. See `pipeline.data`."""
