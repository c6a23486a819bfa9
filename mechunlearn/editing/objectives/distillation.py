"""Distil the model into itself with the old answer taken out of the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mechunlearn.core.checks import above, integer
from mechunlearn.editing.objectives.losses import ceu, undial
from mechunlearn.editing.objectives.requests import Outputs, Request, Terms
from mechunlearn.editing.objectives.retain_terms import RetainTerms
from mechunlearn.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class UNDIAL(RetainTerms):
    """Self-distillation from adjusted logits: the unedited model with the true token's logit lowered.

    Loss: the cross-entropy of ``softmax(z_ref - beta onehot(answer))`` with the model, averaged over the
    tokens of the answers alone. Bounded below, and its minimum is a model that still speaks.

    When it fails: the target is fixed at the start; if beta is small next to the lead of the true token over
    the second, the answer remains the likeliest.

    Args:
        forget: weight of the distillation.
        retain: weight of the retain set's own answers; 0, as published.
        text: weight of general text; 0, as published.
        retain_loss: ``"nll"`` or ``"kl"``, if anything is kept.
        beta: by how much the logit is lowered; the authors tried 3, 10 and 30.

    Raises:
        TrainingError: an option is out of its range.

    Example:
        >>> mu.objectives.UNDIAL().requests["forget"].reference
        'logprobs'

    Source: Dong et al., "UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large
    Language Models" (2024).
    """

    retain: float | int = 0.0
    text: float | int = 0.0
    beta: float | int = 10.0
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        above(TrainingError, 0, beta=self.beta)

    @property
    def requests(self) -> Mapping[str, Request]:
        """The old answers, beside all that the unedited model might say there, and what is kept."""
        return {"forget": Request("forget", reference="logprobs"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        forget = undial(outputs["forget"], beta=self.beta)
        return {"forget": self.forget * forget, **self.keep_terms(outputs)}


@dataclass(frozen=True, kw_only=True)
class CEU(RetainTerms):
    """Cross-entropy unlearning: the model's own distribution without the true token is its teacher.

    Loss: the cross-entropy of ``softmax(z)`` with ``z[answer] = -inf``, without gradient, with the model,
    averaged over the tokens of the answers. The gradient by the logits is ``p - q``, so it is bounded, and
    the old token is pushed with p alone: what the model says besides stays as it is.

    When it fails: the teacher follows the model, so where the answers are pushed for long the rest of the
    distribution drifts with nothing to hold it.

    Args:
        forget: weight of the forget term.
        retain: weight of the retain set's own answers; 0, as published.
        text: weight of general text; 0, as published.
        retain_loss: ``"nll"`` or ``"kl"``, if anything is kept.
        skip: so many first tokens of an answer are left alone, but never its last. Published 1, for answers
            that are sentences and say nothing in their first token; 0 here, since in short answers the first
            token is the fact.

    Raises:
        TrainingError: an option is out of its range.

    Example:
        >>> mu.objectives.CEU().skip
        0

    Source: Yang, "CE-U: Cross Entropy Unlearning" (2025).
    """

    retain: float | int = 0.0
    text: float | int = 0.0
    skip: int = 0
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        integer(TrainingError, 0, skip=self.skip)

    @property
    def requests(self) -> Mapping[str, Request]:
        """The old answers of the forget set, and what is kept."""
        return {"forget": Request("forget"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        forget = ceu(outputs["forget"], skip=self.skip)
        return {"forget": self.forget * forget, **self.keep_terms(outputs)}
