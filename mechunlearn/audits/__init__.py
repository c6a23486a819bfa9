"""Doubt: examine an edit beside the untouched model, the gold model and its own recipe elsewhere."""

from mechunlearn.audits.audit import audit as audit

__all__ = ["audit"]
