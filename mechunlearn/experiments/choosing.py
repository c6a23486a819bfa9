"""Choose the options of an edit on validation phrasings, in one way for every method.

1. A candidate is a whole recipe: an objective, a learning rate, a budget of steps, and a stop. It is fitted
   on training phrasings, and its stop decides, on validation phrasings, which of its steps is kept.
2. The candidate whose kept step has the highest ``Stop.value`` is chosen: success up to the goal, plus
   retention up to the bound. Of two that are worth the same the earlier one is, so list gentle ones first.
3. No candidate can be worth more than one that reached the goal, so those after it are not tried. A candidate
   whose training fails (because it diverges, say) is out.

Held-out phrasings are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Recipe, Stop
from mechunlearn.editing.training.fitting import refit
from mechunlearn.errors import TrainingError

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True)
class Trial:
    """How one candidate did on validation phrasings.

    Args:
        options: the options that set it apart from the other candidates, in words.
        success: share of the forget set's questions on which the objective's aim was met.
        retention: accuracy on the retain set.
        step: the step that was kept.
        steps: number of steps that were taken.
        failed: why it could not be fitted; empty if it could.

    Example:
        >>> Trial("lr 0.001", success=1.0, retention=0.5).value(mu.Stop(goal=0.9))
        1.4
    """

    options: str = ""
    success: float = 0.0
    retention: float = 0.0
    step: int = 0
    steps: int = 0
    failed: str = ""

    def value(self, stop: Stop) -> float:
        """What it is worth; less than anything where it failed."""
        return float("-inf") if self.failed else stop.value(self.success, self.retention)

    def reached(self, stop: Stop) -> bool:
        """Whether it reached the goal and retained enough, so that no candidate can be worth more."""
        return not self.failed and self.success >= stop.goal and self.retention >= stop.min_retention


@dataclass(frozen=True, eq=False)
class Choice:
    """The candidate that was chosen, its edit, and how all that were tried did.

    Args:
        edit: the edit of the chosen candidate.
        chosen: how it did.
        trials: how every candidate did, in order, up to the first that reached the goal.
    """

    edit: Edit
    chosen: Trial
    trials: tuple[Trial, ...]

    @property
    def recipe(self) -> Recipe | None:
        """The chosen candidate; None if its edit was not trained."""
        return self.edit.recipe


class Candidate(NamedTuple):
    """The options of a candidate in words, its stop, and the function that fits it."""

    options: str
    stop: Stop
    fit: Callable[[], tuple[Edit, Trial]]


def choose(
    hm: HookedModel,
    localization: Localization,
    candidates: Sequence[Recipe],
    facts: Facts,
    *,
    progress: bool = False,
) -> Choice:
    """Fit candidates and keep the best on validation phrasings.

    Args:
        hm: the model, which stays as it is.
        localization: the sites whose weights may change.
        candidates: recipes with a stop, the gentlest first.
        facts: the facts to train and to validate on.
        progress: show the progress bars of the fits.

    Raises:
        TrainingError: there is no candidate, one has no stop or takes no step, or none could be fitted.

    Example:
        >>> from mechunlearn.editing.edits.recipes import Recipe
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> few = mu.Facts([*facts.forget[:2], *facts.retain[:2]])
        >>> inject = mu.objectives.Inject(text=0.0)
        >>> grid = [Recipe(inject, steps=1, lr=lr) for lr in (1e-3, 3e-3)]
        >>> choice = choose(hm, mu.Localization(["L0.mlp"]), grid, few)
        >>> [trial.options for trial in choice.trials]
        ['lr 0.001', 'lr 0.003']
    """
    _check(candidates)

    def fit(recipe: Recipe) -> tuple[Edit, Trial]:
        edit = refit(hm, recipe, localization, facts, progress=progress)
        return edit, Trial("", *validated(edit), edit.step, len(edit.history))

    return best_of(
        [
            Candidate(options, recipe.stop or Stop(), partial(fit, recipe))
            for options, recipe in zip(in_words(candidates), candidates, strict=True)
        ]
    )


def best_of(candidates: Sequence[Candidate]) -> Choice:
    """Fit candidates in order, the gentlest first, and choose the one that is worth most.

    Raises `TrainingError` if none could be fitted.
    """
    trials: list[Trial] = []
    best: tuple[float, Edit, Trial] | None = None
    for options, stop, fit in candidates:
        try:
            edit, outcome = fit()
        except TrainingError as error:
            trials.append(Trial(options, failed=str(error)))
            continue
        trial = replace(outcome, options=options)
        trials.append(trial)
        # Strictly more, so that of two that are worth the same the earlier, gentler one stays.
        if best is None or trial.value(stop) > best[0]:
            best = trial.value(stop), edit, trial
        if trial.reached(stop):
            break
    if best is None:
        raise TrainingError(
            f"none of {len(trials)} candidates could be fitted; the last: {trials[-1].failed}"
        )
    return Choice(best[1], best[2], tuple(trials))


def validated(edit: Edit) -> tuple[float, float]:
    """Return success and retention at the step that an edit kept.

    Raises `TrainingError` if it was fitted without a stop, or not fitted at all.
    """
    # Steps are counted from 1, entries from 0.
    entry = edit.history[edit.step - 1] if edit.step else {}
    if "success" not in entry:
        raise TrainingError(f"{edit!r} was not judged; fit it with stop=Stop()")
    return entry["success"], entry["retention"]


def in_words(candidates: Sequence[Recipe]) -> list[str]:
    """Name what sets each candidate apart: its learning rate and, where they differ, its objective."""
    alike = len({repr(recipe.objective) for recipe in candidates}) == 1
    return [f"lr {r.lr:.3g}" if alike else f"{r.objective}, lr {r.lr:.3g}" for r in candidates]


def _check(candidates: Sequence[Recipe]) -> None:
    if not candidates:
        raise TrainingError("there is no candidate; give at least one Recipe")
    for recipe in candidates:
        if recipe.stop is None or recipe.steps < 1:
            raise TrainingError(
                f"a candidate takes {recipe.steps} steps with stop={recipe.stop!r}, so it cannot be judged; "
                "give at least 1 step and stop=Stop()"
            )
