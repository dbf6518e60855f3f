"""Task families, a file each: targets, loss, judgement of a split, probes."""
