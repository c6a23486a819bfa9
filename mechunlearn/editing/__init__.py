"""Cut: edits as values, and every way to fit one inside a localization."""
