"""Edits as values: slice deltas, their algebra, files and recipes."""
