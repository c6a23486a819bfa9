"""Experiments on edits: their size, sequences of them, whole classes, and many facts at once."""
