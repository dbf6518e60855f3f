"""Minibatches from one cache or several: order, memory, gathering."""
