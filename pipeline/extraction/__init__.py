"""The parts of extraction: what to extract, checked media, batches made ready ahead, the report."""
