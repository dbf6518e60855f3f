"""Task families: loss, metrics and presets of classification and regression."""
