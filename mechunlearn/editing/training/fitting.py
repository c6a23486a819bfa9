"""Fit an edit: train the slices of a localization, and nothing else, on what an objective reads.

1. The localization becomes slices of Hugging Face parameters, and each slice one small tensor of deltas
   that starts at zero. The optimiser is given these alone, so whatever it does, weight decay included,
   nothing else can move.
2. A step draws examples for everything the objective requests, runs the plain Hugging Face model from the
   first edited block on with the deltas added, and hands the outputs to the objective. What the edit cannot
   change is computed once per example and cached.
3. Every few steps the model is measured on validation phrasings. Training stops when the goal is reached,
   and the edit is that of the best step.
4. The user's model is only read. An error, a NaN or an interrupt leaves it as it was.

Source: the localized objectives of Guo et al., "Mechanistic Unlearning" (2024), with trainable slices in
place of gradient masks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mechunlearn.core.checks import require
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.algebra import Delta
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.history import History
from mechunlearn.editing.edits.recipes import Optimizer, Recipe, Stop
from mechunlearn.editing.objectives.requests import Objective
from mechunlearn.editing.training.activation_cache import CacheBudget
from mechunlearn.editing.training.checkpoints import Checkpoints, Records, fingerprint
from mechunlearn.editing.training.early_stopping import EarlyStopping
from mechunlearn.editing.training.limits import Limits
from mechunlearn.editing.training.optimization import REMEDY, Optimization
from mechunlearn.errors import DataError, FactError, FallbackWarning, LocalizationError, TrainingError
from mechunlearn.models.encoding.batch import Batch

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

Callback = Callable[[int, Mapping[str, float]], bool | None]


def edit(
    hm: HookedModel,
    localization: Localization,
    objective: Objective,
    facts: Facts,
    *,
    steps: int = 200,
    lr: float = 1e-3,
    seed: int = 0,
    stop: Stop | None = Stop(),  # noqa: B008 - a frozen value
    optimizer: Optimizer = Optimizer(),  # noqa: B008 - a frozen value
    limits: Limits = Limits(),  # noqa: B008 - a frozen value
    corpus: Batch | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    callback: Callback | None = None,
) -> Edit:
    """Fit an edit inside a localization.

    Trains on the forget facts' training phrasings, on the retain facts, and on the training half of the
    text; validation phrasings decide when to stop; held-out phrasings are never touched.

    Args:
        hm: the model, which stays as it is.
        localization: the sites whose weights may change.
        objective: the loss to minimise, such as ``objectives.Inject()``.
        facts: a forget set and, as the objective needs them, a retain set and text.
        steps: the largest number of steps.
        lr: the peak learning rate.
        seed: seed of the order of examples, and of whatever an objective draws; on a CPU it decides every
            bit.
        stop: when to stop early; None runs all steps and keeps the last.
        optimizer: the optimiser, its schedule, clipping and micro-batches.
        limits: the batch size, how much memory and disk may be used, and how often to save a checkpoint.
        corpus: encoded text with labels of its own, for an objective that reads it, such as ``Relabel()``.
        checkpoint: a folder for checkpoints; if it holds one of this very run, training goes on from there
            and ends in the same bytes.
        progress: whether to show a bar with the loss terms.
        callback: called after every step with its number and the loss terms; returns True to end training.

    Raises:
        LocalizationError: the localization is empty, or not a ``Localization``.
        SiteError: a site is not of this model.
        FactError: a set that the objective reads is empty, or a fact has no new answer.
        TrainingError: an option is out of range, or the loss is not finite, or diverges.
        DataError: the checkpoint is damaged, or of another run.

    Example:
        >>> import mechunlearn as mu
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> few = mu.Facts([*facts.forget[:2], *facts.retain[:2]], text=facts.text[:2])
        >>> e = mu.edit(hm, hm.sites.mlps(), mu.objectives.Inject(), few, steps=2, progress=False)
        >>> len(e.localization)
        8

    Source: Guo et al., "Mechanistic Unlearning" (2024), section 3.
    """
    _require_limits(limits)
    recipe = Recipe(objective, steps, lr, seed, stop, optimizer, limits.batch_size)
    return refit(
        hm,
        recipe,
        localization,
        facts,
        limits=limits,
        corpus=corpus,
        checkpoint=checkpoint,
        progress=progress,
        callback=callback,
    )


def refit(
    hm: HookedModel,
    recipe: Recipe,
    localization: Localization,
    facts: Facts,
    *,
    limits: Limits = Limits(),  # noqa: B008 - a frozen value
    corpus: Batch | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    callback: Callback | None = None,
) -> Edit:
    """Fit a recipe, such as ``edit.recipe``, on a localization.

    All else is as in :func:`edit`, errors included; the batch size is the recipe's, not that of ``limits``.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> recipe = mu.Recipe(mu.objectives.Forget(), steps=1)
        >>> mu.refit(hm, recipe, mu.Localization(["L3.mlp"]), facts, progress=False).step
        1
    """
    _require(hm, localization, facts)
    _require_limits(limits)
    _require_options(recipe, corpus=corpus, checkpoint=checkpoint)
    if corpus is None:
        facts.require("forget")
    budget = CacheBudget.of(limits)
    # Notebooks for reading models often switch gradients off for good.
    with torch.inference_mode(False), torch.enable_grad():
        run = Optimization.of(
            hm, recipe, localization, facts, corpus=corpus, budget=budget,
            checkpointing=limits.gradient_checkpointing,
        )  # fmt: skip
        if run.runner.reason:
            reason = f"the whole model is run at every step: {run.runner.reason}"
            warnings.warn(reason, FallbackWarning, stacklevel=2)
        stopping = None
        if recipe.stop is not None and len(facts.forget):
            stopping = EarlyStopping.of(
                hm, recipe.stop, recipe.objective, facts, run.trained, runner=run.runner, budget=budget
            )
        identity, saving = hm.identity, None
        if checkpoint is not None:
            mark = fingerprint(run, stopping, model=identity, sites=localization)
            saving = Checkpoints(Path(checkpoint), limits.checkpoint_every, mark)
            saving.prepare()
        try:
            history = _fit(run, stopping, saving, progress=progress, callback=callback)
        finally:
            run.feed.release()
    return replace(_edited(run, stopping, localization, history), made_on=identity, arch=hm.arch)


def _edited(
    run: Optimization, stopping: EarlyStopping | None, localization: Localization, history: Records
) -> Edit:
    """The edit of the best step, or of the last if none was measured."""
    trained, deltas, step = run.trained, run.trained.snapshot(), len(history)
    if stopping is not None and stopping.best:
        deltas, step = stopping.best, stopping.step
    if not all(bool(delta.isfinite().all()) for delta in deltas):
        raise TrainingError(f"the weights are not finite after step {step}; {REMEDY}")
    return Edit(
        deltas=tuple(Delta(s, delta.cpu()) for s, delta in zip(trained.slices, deltas, strict=True)),
        localization=localization,
        shapes=trained.shapes,
        recipe=run.recipe,
        history=History(history, step=step, title=run.recipe.summary),
        step=step,
    )


def _require(hm: HookedModel, localization: Localization, facts: Facts) -> None:
    """Refuse what is not a localization or not facts, an empty localization, and sites of another model."""
    if not isinstance(localization, Localization):
        raise LocalizationError(
            f"the localization is {localization!r}; give sites as a Localization, such as hm.sites.mlps() or "
            'Localization(["L3.mlp"])'
        )
    if not isinstance(facts, Facts):
        raise FactError(f"the facts are a {type(facts).__name__}; give them as Facts, as in Facts([...])")
    hm.refresh()
    if not len(localization):
        raise LocalizationError(
            "the localization is empty, so there is nothing to train; "
            "select at least one site, for instance hm.sites.mlps()"
        )
    hm.sites.check(localization)


def _require_limits(limits: object) -> None:
    require(
        isinstance(limits, Limits),
        TrainingError,
        "limits",
        limits,
        "a Limits(...), such as Limits(memory=1 << 30)",
    )


def _require_options(recipe: Recipe, *, corpus: object, checkpoint: str | Path | None) -> None:
    """Refuse a corpus or a folder that cannot be used, before anything is run."""
    if checkpoint is not None and Path(checkpoint).is_file():
        raise DataError(f"checkpoint is {str(checkpoint)!r}, which is a file; give a folder")
    read = any(read.split == "corpus" for read in recipe.objective.requests.values())
    if corpus is not None and not isinstance(corpus, Batch):
        kind = type(corpus).__name__
        raise FactError(f"the corpus is a {kind}; give an encoded Batch, such as mu.whp.relabel(...).batch")
    if corpus is not None and not read:
        raise FactError(
            f"a corpus is given and {type(recipe.objective).__name__} reads none; leave corpus= out, or "
            "use an objective that does, such as Relabel()"
        )


def _fit(
    run: Optimization,
    stopping: EarlyStopping | None,
    saving: Checkpoints | None,
    *,
    progress: bool,
    callback: Callback | None,
) -> Records:
    """Take steps until the goal is reached or there are none left."""
    from tqdm.auto import tqdm

    history, done = saving.load(run, stopping) if saving is not None else ([], False)
    last = run.recipe.steps
    with tqdm(total=last, initial=len(history), disable=not progress, desc="edit", leave=False) as bar:
        while not done and len(history) < last:
            step = len(history) + 1
            values = run.step(step)
            done = callback is not None and callback(step, values) is True
            shares: dict[str, float] = {}
            if stopping is not None and (done or stopping.due(step, last)):
                shares = stopping.measure(step)
                done = done or stopping.stop.reached(**shares)
            history.append({"step": float(step), **values, **shares})
            shown = {name: f"{value:.3f}" for name, value in {**values, **shares}.items()}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if saving is not None and (done or step == last or step % saving.every == 0):
                saving.save(run, stopping, history, done=done)
    return history
