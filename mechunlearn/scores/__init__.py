"""Labelled arrays of scores over sites."""

from mechunlearn.scores.scores import Scores

__all__ = ["Scores"]
