"""The parts of a plan: assumed tables, the measured trial, and what fits a budget."""
