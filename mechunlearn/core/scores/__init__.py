"""Labelled arrays of scores over sites."""
