"""Gradient ascent on the loss of the old answers: alone, or together with descent on the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mechunlearn.editing.objectives.losses import nll
from mechunlearn.editing.objectives.requests import Outputs, Request, Terms
from mechunlearn.editing.objectives.retain_terms import RetainTerms


@dataclass(frozen=True, kw_only=True)
class GradientDifference(RetainTerms):
    """Ascend the loss of the old answers and descend that of the retain set.

    Loss: ``forget * mean log p(answer)`` per token, plus the retain terms.

    When it fails: the forget term has no lower bound. Without early stopping training diverges, which the
    trainer reports as an error; before that the model produces nonsense wherever an answer is due. At the
    start the gradient with respect to the logits has size 1 - p: for an answer that is certain it is almost
    0, so that other terms outweigh it (the gradients of ``Forget`` and ``CEU`` are not small there).

    Args:
        forget: weight of the ascent.
        retain: weight of the loss on the retain set's own answers.
        text: weight of the loss on general text; the published method has no such term.
        retain_loss: ``"nll"``, or ``"kl"``, the divergence from the unedited model.

    Raises:
        TrainingError: a weight is out of its range, or there is no such ``retain_loss``.

    Example:
        >>> mu.objectives.GradientDifference(forget=0.5).aim
        'forget'

    Source: Liu et al., "Continual Learning and Private Unlearning" (2022); both retain losses, Maini et al.,
    "TOFU" (2024).
    """

    aim: ClassVar[Literal["new", "forget"]] = "forget"

    @property
    def requests(self) -> Mapping[str, Request]:
        """The old answers of the forget set, and the retained data."""
        return {"forget": Request("forget"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``ascent``, ``retain``, ``text``."""
        return {"ascent": -self.forget * nll(outputs["forget"]), **self.keep_terms(outputs)}


@dataclass(frozen=True, kw_only=True)
class GradientAscent(GradientDifference):
    """Ascend the loss of the old answers, without a retain term.

    Loss: ``forget * mean log p(answer)`` per token. The baseline of the literature; with a retain term it is
    :class:`GradientDifference`.

    When it fails: always, in a long run. Nothing preserves the rest of the model, and the loss has no lower
    bound.

    Args:
        forget: weight of the ascent.
        retain: weight of the loss on the retain set's own answers; published 0.
        text: weight of the loss on general text; published 0.
        retain_loss: ``"nll"`` or ``"kl"``, for a retain term that is used.

    Raises:
        TrainingError: a weight is out of its range, or there is no such ``retain_loss``.

    Example:
        >>> list(mu.objectives.GradientAscent().requests)
        ['forget']

    Source: Jang et al., "Knowledge Unlearning for Mitigating Privacy Risks in Language Models" (2022).
    """

    retain: float | int = 0.0
    text: float | int = 0.0
