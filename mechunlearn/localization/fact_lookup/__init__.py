"""Fact lookup: the MLPs that turn a subject into the answer, by reading and swapping, or by paths."""
