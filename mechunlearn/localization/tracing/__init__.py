"""Causal tracing, as a verb and as hooks."""
