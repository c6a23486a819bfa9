"""Write facts into a matrix by solving for it: ROME, MEMIT, and AlphaEdit's null space."""

from mechunlearn.editing.closed_form.keys import KeyStatistics as KeyStatistics
from mechunlearn.editing.closed_form.keys import key_statistics as key_statistics
from mechunlearn.editing.closed_form.rank_one import rome as rome
from mechunlearn.editing.closed_form.spreading import memit as memit

__all__ = ["KeyStatistics", "key_statistics", "memit", "rome"]
