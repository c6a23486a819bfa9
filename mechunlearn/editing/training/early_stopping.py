"""Measure an edit while it is trained, on validation phrasings alone, and remember the best step.

1. The forget set's success and the retain set's accuracy are measured on the model that is trained, with
   the weights of the step. The states that enter the first edited block are cached from one measurement to
   the next.
2. The best step is the one of the highest ``Stop.value``, ties to the later one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.editing.edits.recipes import Stop
from mechunlearn.editing.objectives.requests import Objective
from mechunlearn.editing.training.activation_cache import CacheBudget
from mechunlearn.editing.training.partial_forward import Runner
from mechunlearn.editing.training.slice_parameters import Trained
from mechunlearn.models.scoring.scorer import Prepared, prepare, score

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel


@dataclass
class EarlyStopping:
    """Measures success and retention, and copies the deltas of the best step.

    ``aim`` is what counts as success: ``"new"`` (the new answer is given) or ``"forget"`` (the old one is
    not). ``forget`` and ``retain`` are validation questions; without ``retain``, retention counts as 1.
    ``best``, ``step`` and ``value`` are the best step's deltas, number (0 if none) and ``Stop.value``.
    """

    stop: Stop
    aim: str
    forget: Prepared
    retain: Prepared
    runner: Runner
    trained: Trained
    budget: CacheBudget
    best: tuple[Tensor, ...] = ()
    step: int = 0
    value: float = float("-inf")
    _memory: dict[bytes, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        hm: HookedModel,
        stop: Stop,
        objective: Objective,
        facts: Facts,
        trained: Trained,
        *,
        runner: Runner,
        budget: CacheBudget,
    ) -> EarlyStopping:
        """Encode the validation questions; the objective decides what counts as success."""
        forget, retain = (prepare(hm, _validation(split)) for split in (facts.forget, facts.retain))
        return cls(stop, objective.aim, forget, retain, runner, trained, budget)

    def due(self, step: int, last: int) -> bool:
        """Whether a step is measured: every so many, and the last."""
        return step % self.stop.every == 0 or step == last

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """Measure ``success`` and ``retention``, as shares; copy the deltas if they are the best so far."""
        self.runner.set_weights(self.trained.changed())
        with self.runner.remembering(self._memory, self.budget):
            outcome = score(self.runner.hm, self.forget)
            retention = float(score(self.runner.hm, self.retain).correct.mean()) if self.retain.facts else 1.0
        self.runner.set_weights(self.trained.frozen)
        success = float((outcome.says_new if self.aim == "new" else ~outcome.correct).mean())
        value = self.stop.value(success, retention)
        if value >= self.value:
            self.value, self.best, self.step = value, self.trained.snapshot(), step
        return {"success": success, "retention": retention}


def _validation(facts: Facts) -> Facts:
    """The validation phrasings; the training ones of facts that have no others."""
    questions = [q for fact in facts for q in fact.phrasings("validation" if fact.validation else "train")]
    return Facts([replace(question, entailed=(), others=(), neighbours={}) for question in questions])
