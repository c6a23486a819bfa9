"""Whole experiments on the embedded world."""
