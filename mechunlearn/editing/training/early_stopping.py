"""EarlyStopping an edit while it is trained, on validation phrasings alone, and remember the best step.

1. The forget set's success and the retain set's accuracy are measured on the model that is trained, with
   the weights of the step. What the blocks below the edit give to the questions is remembered from one
   measurement to the next.
2. The best step is the one of the highest ``Stop.value``, ties to the later one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.editing.edits.recipes import Stop
from mechunlearn.editing.objectives.reading import Objective
from mechunlearn.editing.training.activation_cache import CacheBudget
from mechunlearn.editing.training.partial_forward import Runner
from mechunlearn.editing.training.slice_parameters import Trained
from mechunlearn.models.scoring.scorer import Prepared, prepare, score

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel


@dataclass
class EarlyStopping:
    """Measures success and retention, and keeps the deltas of the best step.

    Args:
        stop: the criterion.
        aim: the objective's, ``"new"`` or ``"forget"``.
        forget: the validation questions of the forget set.
        retain: those of the retain set; without any, retention counts as whole.
        runner: runs the model.
        trained: what is being trained.
        room: bounds what is remembered.
        best: the deltas of the best step so far.
        step: that step; 0 before the first measurement.
        value: its value.
    """

    stop: Stop
    aim: str
    forget: Prepared
    retain: Prepared
    runner: Runner
    trained: Trained
    room: CacheBudget
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
        room: CacheBudget,
    ) -> EarlyStopping:
        """Make a judge for one run of training.

        Args:
            hm: the model, which is only read.
            stop: the criterion.
            objective: says what counts as success.
            facts: their forget and retain sets are asked.
            trained: what will be trained.
            runner: runs the model.
            room: bounds what is remembered.
        """
        forget, retain = (prepare(hm, _validation(split)) for split in (facts.forget, facts.retain))
        return cls(stop, objective.aim, forget, retain, runner, trained, room)

    def due(self, step: int, last: int) -> bool:
        """Whether a step is to be judged: every so many, and the last."""
        return step % self.stop.every == 0 or step == last

    @torch.no_grad()
    def judge(self, step: int) -> dict[str, float]:
        """Measure the deltas as they are, and keep them if they are the best so far.

        Args:
            step: its number.

        Returns:
            ``success`` and ``retention``, as shares.
        """
        self.runner.put(self.trained.changed())
        with self.runner.remembering(self._memory, self.room):
            outcome = score(self.runner.hm, self.forget)
            kept = float(score(self.runner.hm, self.retain).correct.mean()) if self.retain.facts else 1.0
        self.runner.put(self.trained.frozen)
        success = float((outcome.says_new if self.aim == "new" else ~outcome.correct).mean())
        value = self.stop.value(success, kept)
        if value >= self.value:
            self.value, self.best, self.step = value, self.trained.snapshot(), step
        return {"success": success, "retention": kept}


def _validation(facts: Facts) -> Facts:
    """The validation phrasings; the training ones of facts that have no others."""
    asked = [ask for fact in facts for ask in fact.phrasings("validation" if fact.validation else "train")]
    return Facts([replace(ask, entailed=(), others=(), neighbours={}) for ask in asked])
