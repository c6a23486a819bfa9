"""Controls of an audit: the edit's recipe, refitted on random localizations of equal size.

1. Draw random localizations with as many parameters as the edit's, no two of them the same.
2. Fit the edit's recipe on each, with the same facts and the recipe's seed.
3. Where there is no recipe, no further localization or no finite loss, there is no control, and the reason is
   reported.
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

    Returns the refits, and the reasons why there are fewer than ``count``, if so. The model stays as it is.
    """
    if count < 1:
        return (), ("no control: controls=0",)
    if edit.recipe is None:
        reason = "the edit carries no recipe, so it cannot be refitted elsewhere (edits made by mu.edit do)"
        return (), (f"no control: {reason}",)
    refitted: list[Edit] = []
    notes: list[str] = []
    try:
        localizations = distinct(hm.sites, edit.localization, count=count, seed=seed)
    except (LocalizationError, SiteError) as error:
        return (), (f"no control: {error}",)
    if len(localizations) < count:
        notes.append(f"{len(localizations)} of {count} controls: no other localization has this size")
    for localization in localizations:
        try:
            refitted.append(refit(hm, edit.recipe, localization, facts, progress=progress))
        except TrainingError as error:
            notes.append(f"a control at {localization} could not be fitted: {error}")
    return tuple(refitted), tuple(notes)


def distinct(sites: ModelSites, like: Localization, *, count: int, seed: int) -> list[Localization]:
    """Random localizations of the size of ``like``, none of them ``like``, no two of them the same.

    There are fewer than ``count`` where repeated sampling gives no new one; a `LocalizationError` is raised
    where sites cannot make up the size at all.
    """
    samples: list[Localization] = []
    for attempt in range(TRIES * count):
        # Seeds of different audits must not overlap, or their controls would be partly the same.
        sample = sites.sample(like=like, seed=seed * TRIES * count + attempt)
        if sample == like:  # no other choice has its size, so further seeds would find none either
            break
        if sample not in samples:
            samples.append(sample)
        if len(samples) == count:
            break
    return samples


def outcome_in_words(edit: Edit) -> str:
    """How far a refit reached its recipe's goal, in words; empty where the recipe has none."""
    scored = [entry for entry in edit.history if entry["step"] == edit.step and "success" in entry]
    if not scored or edit.recipe is None or edit.recipe.stop is None:
        return ""
    success, retention = scored[0]["success"], scored[0]["retention"]
    reached = edit.recipe.stop.reached(success, retention)
    return f"{'' if reached else 'short of the goal: '}success {success:.2f}, retention {retention:.2f}"
