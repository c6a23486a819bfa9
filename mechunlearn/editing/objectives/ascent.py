"""Ascend the loss of the old answers: alone, or while the rest is descended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mechunlearn.editing.objectives.losses import nll
from mechunlearn.editing.objectives.requests import Outputs, Request, Terms
from mechunlearn.editing.objectives.retain_terms import RetainTerms


@dataclass(frozen=True, kw_only=True)
class GradientDifference(RetainTerms):
    """Ascend the old answer's loss while descending the retain set's.

    Loss: ``forget * mean log p(answer)`` per token, plus the terms that keep the rest.

    When it fails: the forget term has no lower bound. Without an early stop it ends in divergence, which the
    trainer reports as an error; before that the model says nonsense wherever an answer is due. At the start
    the gradient by the logits is of size 1 - p: of an answer that is certain almost none, so that other terms
    drown it (``Forget`` and ``CEU`` do not wait like this).

    Args:
        forget: weight of the ascent.
        retain: weight of the retain set's own answers.
        text: weight of general text; the published method has no such term.
        retain_loss: ``"nll"`` or ``"kl"``, the divergence from the unedited model.

    Raises:
        TrainingError: a weight is out of its range, or there is no such way of keeping.

    Example:
        >>> mu.objectives.GradientDifference(forget=0.5).aim
        'forget'

    Source: Liu et al., "Continual Learning and Private Unlearning" (2022); both ways of keeping, Maini
    et al., "TOFU" (2024).
    """

    aim: ClassVar[Literal["new", "forget"]] = "forget"

    @property
    def requests(self) -> Mapping[str, Request]:
        """The old answers of the forget set, and what is kept."""
        return {"forget": Request("forget"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``ascent``, ``retain``, ``text``."""
        return {"ascent": -self.forget * nll(outputs["forget"]), **self.keep_terms(outputs)}


@dataclass(frozen=True, kw_only=True)
class GradientAscent(GradientDifference):
    """Ascend the old answer's loss, and keep nothing.

    Loss: ``forget * mean log p(answer)`` per token. The baseline of the literature; with a retain term it is
    :class:`GradientDifference`.

    When it fails: always, if run for long. Nothing holds the rest of the model, and the loss has no lower
    bound.

    Args:
        forget: weight of the ascent.
        retain: weight of the retain set's own answers; 0, as published.
        text: weight of general text; 0, as published.
        retain_loss: ``"nll"`` or ``"kl"``, if anything is kept.

    Raises:
        TrainingError: a weight is out of its range, or there is no such way of keeping.

    Example:
        >>> list(mu.objectives.GradientAscent().requests)
        ['forget']

    Source: Jang et al., "Knowledge Unlearning for Mitigating Privacy Risks in Language Models" (2022).
    """

    retain: float | int = 0.0
    text: float | int = 0.0
