"""Write facts into a matrix in closed form: ROME, MEMIT, and AlphaEdit's null space."""

from mechunlearn.editing.closed_form.keys import KeyStatistics as KeyStatistics
from mechunlearn.editing.closed_form.keys import key_statistics as key_statistics
from mechunlearn.editing.closed_form.mass_editing import memit as memit
from mechunlearn.editing.closed_form.rank_one_edit import rome as rome
from mechunlearn.editing.closed_form.values import ValueSearch as ValueSearch

__all__ = ["KeyStatistics", "ValueSearch", "key_statistics", "memit", "rome"]
