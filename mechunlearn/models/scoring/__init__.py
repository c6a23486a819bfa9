"""Scores of a model on facts and text: whole answers, options, perplexity."""
