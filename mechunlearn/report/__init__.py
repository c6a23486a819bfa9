"""What an audit found, as a value with a table, pictures and a verdict in words."""

from mechunlearn.report.report import Report as Report

__all__ = ["Report"]
