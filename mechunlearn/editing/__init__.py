"""Cut: edits as values, their recipes, and the verb that fits them inside a localization."""

from mechunlearn.editing.edits import Delta as Delta
from mechunlearn.editing.edits import Edit as Edit
from mechunlearn.editing.fitting import edit as edit
from mechunlearn.editing.fitting import refit as refit
from mechunlearn.editing.recipes import Recipe as Recipe
from mechunlearn.editing.recipes import Stop as Stop

__all__ = ["Delta", "Edit", "Recipe", "Stop", "edit", "refit"]
