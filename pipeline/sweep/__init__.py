"""Searches over hyperparameters: many side networks trained from one cache."""
