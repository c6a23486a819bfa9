"""Doubt: evaluate an edit beside the untouched model, the gold model and its own recipe elsewhere."""
