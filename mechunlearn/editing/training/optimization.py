"""Steps of an optimiser on the trained tensors of an edit.

1. A step draws examples, runs them in micro-batches, and adds up the gradients of the loss terms.
2. The gradient is clipped, if at all, and the optimiser takes a step at the schedule's rate.
3. A loss that is not finite or diverges is an error before any weight changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.recipes import Recipe
from mechunlearn.editing.objectives.requests import Masking, Stateful, Terms
from mechunlearn.editing.training.activation_cache import CacheBudget
from mechunlearn.editing.training.data import DataFeed, MicroBatch
from mechunlearn.editing.training.partial_forward import Runner, first_block
from mechunlearn.editing.training.slice_parameters import Trained
from mechunlearn.errors import TrainingError, one_of
from mechunlearn.models.encoding.batch import Batch

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

DIVERGED = 100.0
"""A loss this many times the first, or this many nats, has diverged."""
REMEDY = "the model is unchanged. Lower lr, or use a bounded objective such as Forget()"


@dataclass
class Optimization:
    """One run of an optimiser on the trained tensors.

    ``state`` is what the objective carries from step to step; ``first`` is the first loss, which decides
    when a later one has diverged.
    """

    recipe: Recipe
    trained: Trained
    runner: Runner
    feed: DataFeed
    optimizer: torch.optim.Optimizer
    state: dict[str, Any] = field(default_factory=dict)
    first: float | None = None

    @classmethod
    def of(
        cls,
        hm: HookedModel,
        recipe: Recipe,
        localization: Localization,
        facts: Facts,
        *,
        corpus: Batch | None,
        budget: CacheBudget,
        checkpointing: bool,
    ) -> Optimization:
        """Prepare the first step; a ``TrainingError`` if the optimiser cannot train these tensors."""
        requests = recipe.objective.requests
        trained = Trained.at(hm, localization, masked=isinstance(recipe.objective, Masking))
        # Made first: a mistake in its arguments is found before anything is encoded or run.
        optimizer = _optimizer(recipe, trained.tensors)
        # The embedding has no layer, and what it changes enters block 0.
        entry = first_block(hm, min(site.layer or 0 for site in localization), requests)
        runner = Runner.of(hm, trained.shapes, entry=entry, checkpointing=checkpointing)
        feed = DataFeed.of(
            hm,
            runner,
            requests,
            facts,
            frozen=trained.frozen,
            budget=budget,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            micro_batches=recipe.optimizer.micro_batches,
            corpus=corpus,
        )
        return cls(recipe, trained, runner, feed, optimizer)

    def step(self, number: int) -> dict[str, float]:
        """Take a step, numbered from 1, and return the loss terms before it.

        A ``TrainingError`` is raised if the loss is not finite, or diverges.
        """
        parts = self.feed.draw()
        totals: dict[str, Tensor] = {}
        for part in parts:
            # The backward pass of a part frees its graph before the next part runs, which saves the memory.
            terms = self._terms(part, number)
            share = 1 / len(parts)
            for name, term in terms.items():
                totals[name] = totals.get(name, torch.zeros((), device=term.device)) + term.detach() * share
            self._check(terms, number)
            self._backward(torch.stack(list(terms.values())).sum() * share)
        # Frees the weights of this step with their graph, which the runner would hold until the next.
        self.runner.set_weights(self.trained.frozen)
        options = self.recipe.optimizer
        if options.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.tensors, options.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * options.rate(number - 1, self.recipe.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.trained.confine()
        if isinstance(self.recipe.objective, Stateful):
            self.state = dict(self.recipe.objective.after_step(self.state, totals))
        return {name: float(term) for name, term in totals.items()}

    def _terms(self, part: MicroBatch, number: int) -> dict[str, Tensor]:
        objective: Any = self.recipe.objective
        outputs = self.feed.read(part, self.trained.changed())
        if not isinstance(objective, Stateful):
            terms: Terms = objective(outputs)
        else:
            if number == 1 and not self.state:
                self.state = dict(objective.init(outputs, seed=self.recipe.seed))
            terms = objective(outputs, self.state)
        _require_terms(terms, objective)
        if isinstance(objective, Masking):
            return {**terms, **objective.penalty(self.trained.by_name(), step=number - 1)}
        return dict(terms)

    def _backward(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise TrainingError(
                f"nothing that {self.recipe.objective} reads depends on the weights that are trained; the "
                "model is unchanged. Edit an earlier block, or have the objective read a later one"
            )
        loss.backward()  # type: ignore[no-untyped-call]

    def _check(self, terms: Mapping[str, Tensor], number: int) -> None:
        """Refuse a loss that is not finite, or far above what training began with."""
        values = {name: float(term.detach()) for name, term in terms.items()}
        loss = sum(values.values())
        if self.first is None and math.isfinite(loss):
            self.first = loss
        bound = DIVERGED * max(1.0, abs(self.first or 0.0))
        if abs(loss) < bound:
            return
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        what = "diverged" if math.isfinite(loss) else "is not finite"
        raise TrainingError(
            f"the loss {what} at step {number}: {loss:.4g} ({shown}), expected below {bound:.4g} in size; "
            + REMEDY
        )


def _require_terms(terms: Any, objective: object) -> None:
    """Raise a ``TrainingError`` if an objective did not return a mapping to scalar tensors."""
    fine = isinstance(terms, Mapping) and bool(terms)
    fine = fine and all(isinstance(term, Tensor) and not term.ndim for term in terms.values())
    if not fine:
        raise TrainingError(
            f"{type(objective).__name__} gave {terms!r}; give a mapping from names to loss terms, each a "
            "tensor of one number without axes, such as {'forget': loss.mean()}"
        )


def _optimizer(recipe: Recipe, tensors: Sequence[Tensor]) -> torch.optim.Optimizer:
    name = recipe.optimizer.name
    kind: Any = getattr(torch.optim, name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        usual = ["Adam", "AdamW", "SGD", "RMSprop"]
        raise TrainingError(one_of("optimizer", name, usual) + ", or another of torch.optim")
    # One kernel for all tensors, of which there may be many small ones.
    fused = {"fused": True} if kind in (torch.optim.Adam, torch.optim.AdamW) else {}
    try:
        make: Any = kind  # the root class, which mypy sees here, has no such arguments
        optimizer: torch.optim.Optimizer = make(
            list(tensors), lr=recipe.lr, weight_decay=recipe.optimizer.weight_decay, **fused
        )
    except (TypeError, ValueError) as error:
        raise TrainingError(
            f"optimizer {name!r} cannot train these slices with lr and weight_decay ({error}); "
            "use 'AdamW' or 'SGD'"
        ) from None
    return optimizer
