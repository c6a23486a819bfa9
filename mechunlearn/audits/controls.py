"""What the same recipe does elsewhere: refits on random localizations of equal size.

1. The model's universe draws a random localization with as many parameters, another one for every control.
2. The edit's recipe is fitted on it, with the same facts and the recipe's own seed.
3. Where there is no recipe, no room or no convergence, there is no control, and the reason is reported.
"""

from __future__ import annotations

from mechunlearn.editing import refit
from mechunlearn.editing.edits import Edit
from mechunlearn.errors import LocalizationError, SiteError, TrainingError
from mechunlearn.facts import Facts
from mechunlearn.model import HookedModel


def refits(
    hm: HookedModel, edit: Edit, facts: Facts, *, count: int, seed: int, progress: bool = False
) -> tuple[tuple[Edit, ...], tuple[str, ...]]:
    """Refit an edit on random localizations of equal size.

    Args:
        hm: the model, which stays as it is.
        edit: with its recipe.
        facts: what it was fitted on.
        count: how many refits.
        seed: of the first draw; each further one adds 1.
        progress: whether to show the bars of the fits.

    Returns:
        The refits, and why there are fewer than asked for, if so.
    """
    if count < 1:
        return (), ("no control: controls=0 was asked for",)
    if edit.recipe is None:
        reason = "the edit carries no recipe, so it cannot be refitted elsewhere (edits made by mu.edit do)"
        return (), (f"no control: {reason}",)
    made: list[Edit] = []
    notes: list[str] = []
    for number in range(count):
        try:
            place = hm.sites.sample(like=edit.localization, seed=seed + number)
            made.append(refit(hm, edit.recipe, place, facts, progress=progress))
        except (LocalizationError, SiteError) as error:
            return tuple(made), (*notes, f"no control: {error}")
        except TrainingError as error:
            notes.append(f"control {number + 1} could not be fitted: {error}")
    return tuple(made), tuple(notes)
