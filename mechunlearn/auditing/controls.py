"""What the same recipe does elsewhere: refits on random localizations of equal size.

1. The model's universe draws random localizations with as many parameters, no two of them the same.
2. The edit's recipe is fitted on it, with the same facts and the recipe's own seed.
3. Where there is no recipe, no room or no convergence, there is no control, and the reason is reported.
"""

from __future__ import annotations

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.training.fitting import refit
from mechunlearn.errors import LocalizationError, SiteError, TrainingError
from mechunlearn.models.hooked import HookedModel

TRIES = 20


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
    try:
        places = distinct(hm.sites, edit.localization, count=count, seed=seed)
    except (LocalizationError, SiteError) as error:
        return (), (f"no control: {error}",)
    if len(places) < count:
        notes.append(f"{len(places)} of {count} controls: there are no more places of this size")
    for number, place in enumerate(places, start=1):
        try:
            made.append(refit(hm, edit.recipe, place, facts, progress=progress))
        except TrainingError as error:
            notes.append(f"control {number} could not be fitted: {error}")
    return tuple(made), tuple(notes)


def distinct(sites: ModelSites, like: Localization, *, count: int, seed: int) -> list[Localization]:
    """Random localizations of the size of another, no two of them the same.

    Args:
        sites: the model's universe.
        like: what they are to be as large as; it is not among them.
        count: how many; fewer are given where chance finds no more.
        seed: of the first draw; each further one adds 1.

    Raises:
        LocalizationError: there is no place of this size.
    """
    found: list[Localization] = []
    for attempt in range(TRIES * count):
        place = sites.sample(like=like, seed=seed * TRIES * count + attempt)
        if place not in found:
            found.append(place)
        if len(found) == count:
            break
    return found


def fitted(edit: Edit) -> str:
    """How well a refit reached what its recipe asks for, in words; empty where nothing was judged.

    Args:
        edit: a refit.
    """
    judged = [entry for entry in edit.history if entry["step"] == edit.step and "success" in entry]
    if not judged or edit.recipe is None or edit.recipe.stop is None:
        return ""
    success, retention = judged[0]["success"], judged[0]["retention"]
    reached = edit.recipe.stop.reached(success, retention)
    return f"{'' if reached else 'short of the goal: '}success {success:.2f}, retention {retention:.2f}"
