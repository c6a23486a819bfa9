"""Gradient attribution: to first order, what corrupting each component or edge would do to the answer."""
