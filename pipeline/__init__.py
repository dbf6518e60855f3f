"""Joins the cache and the side networks: backbones, tasks, and one module a stage."""
