"""Fit an edit: train the slices of a localization, and nothing else, on what an objective reads.

1. The localization becomes slices of Hugging Face parameters, and each slice one small tensor of deltas
   that starts at zero. Only these are given to the optimiser, so whatever it does, weight decay
   included, nothing else can move.
2. A step draws examples for everything the objective reads, runs the plain Hugging Face model with the
   deltas added functionally, and hands the tensors to the objective.
3. Every few steps the model is judged on validation phrasings; the best step is kept and training
   stops when the goal is reached.
4. The user's model is only ever read. An error, a NaN or an interrupt leaves it as it was.

Source: the localized objectives of Guo et al., "Mechanistic Unlearning" (2024), with trainable slices in
place of gradient masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechunlearn.editing.edits import Delta, Edit
from mechunlearn.editing.feeding import Feed
from mechunlearn.editing.judging import Judge
from mechunlearn.editing.recipes import Recipe, Stop
from mechunlearn.editing.trained import Trained
from mechunlearn.errors import FactError, LocalizationError, TrainingError, one_of
from mechunlearn.facts import Facts
from mechunlearn.objectives.reading import Objective, Stateful, Terms
from mechunlearn.sites import Localization

if TYPE_CHECKING:
    from mechunlearn.model import HookedModel

Callback = Callable[[int, Mapping[str, float]], None]

DIVERGED = 100.0  # times the first loss, or this many nats
_REMEDY = "the model is unchanged. Lower lr, or use a bounded objective such as Forget()"


def edit(
    hm: HookedModel,
    localization: Localization,
    objective: Objective,
    facts: Facts,
    *,
    steps: int = 200,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    batch_size: int = 32,
    seed: int = 0,
    stop: Stop | None = Stop(),  # noqa: B008 - a frozen value
    optimizer: str = "AdamW",
    progress: bool = True,
    callback: Callback | None = None,
) -> Edit:
    """Fit an edit inside a localization.

    Trains on the forget facts' training phrasings, on the retain facts, and on the training half of the
    text; validation phrasings decide when to stop; held-out phrasings are never touched.

    Args:
        hm: the model, which stays as it is.
        localization: where weights may change.
        objective: what to minimise, such as ``objectives.Inject()``.
        facts: with a forget set and, as the objective asks, a retain set and text.
        steps: at most so many steps.
        lr: peak learning rate, falling to zero as half a cosine.
        weight_decay: pulls the deltas towards zero, that is, towards the unedited weights.
        batch_size: questions of each kind a step, and a quarter as many texts.
        seed: of the order of examples.
        stop: when to stop early; None runs all steps and keeps the last.
        optimizer: the name of a class in ``torch.optim`` that takes ``lr`` and ``weight_decay``.
        progress: whether to show a bar with the loss terms.
        callback: called after every step with its number and the loss terms.

    Raises:
        LocalizationError: the localization is empty, or is none.
        SiteError: a site is not of this model.
        FactError: a set that the objective reads is empty, or a fact has no new answer.
        TrainingError: an option is out of range, or the loss is not finite, or diverges.

    Example:
        >>> import mechunlearn as mu
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> e = mu.edit(hm, hm.sites.mlps(), mu.objectives.Inject(), facts, steps=2, progress=False)
        >>> len(e.localization)
        8

    Source: Guo et al., "Mechanistic Unlearning" (2024), section 3.
    """
    recipe = Recipe(objective, steps, lr, weight_decay, batch_size, seed, stop, optimizer)
    return refit(hm, recipe, localization, facts, progress=progress, callback=callback)


def refit(
    hm: HookedModel,
    recipe: Recipe,
    localization: Localization,
    facts: Facts,
    *,
    progress: bool = False,
    callback: Callback | None = None,
) -> Edit:
    """Fit a recipe on a localization, as :func:`edit` does.

    Args:
        hm: the model, which stays as it is.
        recipe: objective and options, such as ``edit.recipe``.
        localization: where weights may change.
        facts: what to train and to validate on.
        progress: whether to show a bar with the loss terms.
        callback: called after every step with its number and the loss terms.

    Raises:
        LocalizationError: the localization is empty, or is none.
        SiteError: a site is not of this model.
        FactError: a set that the objective reads is empty, or a fact has no new answer.
        TrainingError: an option is out of range, or the loss is not finite, or diverges.
    """
    _require(hm, localization, facts)
    # Notebooks for reading models often switch gradients off for good.
    with torch.inference_mode(False), torch.enable_grad():
        trained = Trained.at(hm, localization)
        descent = _Descent.of(hm, recipe, facts, trained)
        judge = None
        if recipe.stop is not None:
            judge = Judge.of(hm, recipe.stop, recipe.objective, facts, trained)
        history = _fit(descent, judge, progress=progress, callback=callback)
    deltas, step = (judge.best, judge.step) if judge and judge.best else (trained.snapshot(), len(history))
    if not all(bool(delta.isfinite().all()) for delta in deltas):
        raise TrainingError(f"the weights are not finite after step {step}; {_REMEDY}")
    return Edit(
        deltas=tuple(Delta(s, delta.cpu()) for s, delta in zip(trained.slices, deltas, strict=True)),
        localization=localization,
        shapes=trained.shapes,
        made_on=hm.identity,
        recipe=recipe,
        history=tuple(history),
        step=step,
    )


def _require(hm: HookedModel, localization: Localization, facts: Facts) -> None:
    """Refuse a place or facts that nothing can be fitted to."""
    if not isinstance(localization, Localization):
        raise LocalizationError(
            f"the localization is {localization!r}; give sites as a Localization, such as hm.sites.mlps() or "
            'Localization(["L3.mlp"])'
        )
    if not isinstance(facts, Facts):
        raise FactError(f"the facts are a {type(facts).__name__}; give them as Facts, as in Facts([...])")
    if not len(localization):
        raise LocalizationError(
            "the localization is empty, so there is nothing to train; "
            "select at least one site, for instance hm.sites.mlps()"
        )
    hm.sites.check(localization)
    facts.require("forget")


@dataclass
class _Descent:
    """One run of an optimiser on the deltas."""

    recipe: Recipe
    trained: Trained
    feed: Feed
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    state: Any = None
    first: float | None = None

    @classmethod
    def of(cls, hm: HookedModel, recipe: Recipe, facts: Facts, trained: Trained) -> _Descent:
        optimizer = _optimizer(recipe, trained.deltas)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(recipe.steps, 1))
        reads = recipe.objective.reads
        feed = Feed.of(hm, reads, facts, batch_size=recipe.batch_size, seed=recipe.seed)
        return cls(recipe, trained, feed, optimizer, schedule)

    def step(self, number: int) -> dict[str, float]:
        """Take a step, and give the loss terms it was taken on."""
        objective: Any = self.recipe.objective
        stateful = isinstance(objective, Stateful)
        readings = self.feed.draw(self.trained.weights())
        if stateful and number == 1:
            self.state = objective.init(readings, seed=self.recipe.seed)
        terms: Terms = objective(readings, self.state) if stateful else objective(readings)
        loss = torch.stack(list(terms.values())).sum()
        values = {name: float(term.detach()) for name, term in terms.items()}
        self._check(float(loss.detach()), values, number)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if stateful:
            self.state = objective.after_step(self.state, {n: term.detach() for n, term in terms.items()})
        return values

    def _check(self, loss: float, values: Mapping[str, float], number: int) -> None:
        """Refuse a loss that is not finite, or far above what training began with."""
        if self.first is None and math.isfinite(loss):
            self.first = loss
        bound = DIVERGED * max(1.0, abs(self.first or 0.0))
        if abs(loss) < bound:
            return
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        what = "diverged" if math.isfinite(loss) else "is not finite"
        raise TrainingError(
            f"the loss {what} at step {number}: {loss:.4g} ({shown}), expected below {bound:.4g} in size; "
            + _REMEDY
        )


def _fit(
    descent: _Descent, judge: Judge | None, *, progress: bool, callback: Callback | None
) -> list[dict[str, float]]:
    """Take steps until the goal is reached or there are none left."""
    from tqdm.auto import tqdm

    history: list[dict[str, float]] = []
    last = descent.recipe.steps
    with tqdm(total=last, disable=not progress, desc="edit", leave=False) as bar:
        for step in range(1, last + 1):
            values = descent.step(step)
            if callback is not None:
                callback(step, values)
            verdict = judge.judge(step) if judge is not None and judge.due(step, last) else {}
            history.append({"step": float(step), **values, **verdict})
            shown = {name: f"{value:.3f}" for name, value in {**values, **verdict}.items()}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if verdict and judge is not None and judge.stop.reached(**verdict):
                break
    return history


def _optimizer(recipe: Recipe, deltas: tuple[Tensor, ...]) -> torch.optim.Optimizer:
    kind: Any = getattr(torch.optim, recipe.optimizer, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        known = ["Adam", "AdamW", "SGD", "RMSprop"]
        raise TrainingError(one_of("optimizer", recipe.optimizer, known) + ", or another of torch.optim")
    try:
        make: Any = kind  # the root class, which mypy sees here, has no such arguments
        made: torch.optim.Optimizer = make(list(deltas), lr=recipe.lr, weight_decay=recipe.weight_decay)
    except (TypeError, ValueError) as error:
        raise TrainingError(
            f"optimizer {recipe.optimizer!r} cannot train these slices with lr and weight_decay ({error}); "
            "use 'AdamW' or 'SGD'"
        ) from None
    return made
