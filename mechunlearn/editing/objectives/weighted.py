"""Gradient ascent with a weight for each token, so that tokens already forgotten are left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mechunlearn.core.checks import at_least
from mechunlearn.editing.objectives.losses import weighted_ascent
from mechunlearn.editing.objectives.requests import Outputs, Request, Terms
from mechunlearn.editing.objectives.retain_terms import RetainTerms
from mechunlearn.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class WGA(RetainTerms):
    """Weighted gradient ascent: each token's ascent is weighted by a power of its own probability.

    Loss: ``mean p^beta log p`` over the tokens of the answers, plus the retain terms; the weight ``p^beta``
    carries no gradient. With beta 0 it is plain ascent.

    When it fails: a model that is unsure of all tokens hardly changes; with a small beta training diverges
    like ascent; and like ascent it starts slowly where an answer is certain.

    Args:
        forget: weight of the ascent.
        retain: weight of the loss on the retain set's own answers.
        text: weight of the loss on general text; the published method has no such term.
        retain_loss: ``"nll"``, or ``"kl"``, the divergence from the unedited model.
        beta: exponent of p; the larger, the sooner a token that became improbable is left alone.

    Raises:
        TrainingError: an option is out of its range.

    Example:
        >>> mu.objectives.WGA().beta
        1.0

    Source: Wang et al., "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond" (2025).
    """

    beta: float | int = 1.0
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(TrainingError, 0, beta=self.beta)

    @property
    def requests(self) -> Mapping[str, Request]:
        """The old answers of the forget set, and the retained data."""
        return {"forget": Request("forget"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``ascent``, ``retain``, ``text``."""
        ascent = weighted_ascent(outputs["forget"], power=self.beta)
        return {"ascent": self.forget * ascent, **self.keep_terms(outputs)}


@dataclass(frozen=True, kw_only=True)
class SatImp(RetainTerms):
    """Ascent weighted by saturation and importance: ``p^beta1 (1 - p)^beta2``.

    Loss: ``mean p^beta1 (1 - p)^beta2 log p`` over the tokens of the answers, plus the retain terms; the
    weights carry no gradient. Improbable tokens are left alone, and so are certain ones, which are mostly
    common words.

    When it fails: a fact of which the model is certain is treated like a common word and keeps its p; at p =
    0.99 its weight is a hundredth of that in plain ascent. Lower beta2 there.

    Args:
        forget: weight of the ascent. 0.1, with ``retain`` 1, is open-unlearning's configuration; its
            documentation states the two the other way round.
        retain: weight of the loss on the retain set's own answers.
        text: weight of the loss on general text; the published method has no such term.
        retain_loss: ``"nll"``, or ``"kl"``, the divergence from the unedited model.
        beta1: exponent of p.
        beta2: exponent of 1 - p.

    Raises:
        TrainingError: an option is out of its range.

    Example:
        >>> mu.objectives.SatImp().forget
        0.1

    Source: Yang et al., "Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning" (2025).
    """

    forget: float | int = 0.1
    beta1: float | int = 5.0
    beta2: float | int = 1.0
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(TrainingError, 0, beta1=self.beta1, beta2=self.beta2)

    @property
    def requests(self) -> Mapping[str, Request]:
        """The old answers of the forget set, and the retained data."""
        return {"forget": Request("forget"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``ascent``, ``retain``, ``text``."""
        ascent = weighted_ascent(outputs["forget"], power=self.beta1, doubt=self.beta2)
        return {"ascent": self.forget * ascent, **self.keep_terms(outputs)}
