"""Audit edits: attack an edit, and compare it with the untouched model, the gold model and controls."""
