"""Activation patching, and what other verbs share with it: metrics, corruptions, positions, sweeps."""
