"""Committed measurements: alternatives side by side in one run, medians and ratios, never alone."""
