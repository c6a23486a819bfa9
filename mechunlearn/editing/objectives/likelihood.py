"""The two objectives of the paper: learn a new answer, or make the old one improbable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mechunlearn.core.checks import finite
from mechunlearn.editing.objectives.losses import log1m_prob, nll
from mechunlearn.editing.objectives.requests import Outputs, Request, Terms
from mechunlearn.editing.objectives.retain_terms import RetainTerms
from mechunlearn.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Inject(RetainTerms):
    """Replace the old answer by another one: raise the likelihood of ``new``.

    The paper's editing task. Loss: ``-forget * mean log p(new)`` per token, plus the retain terms.

    When it fails: where few weights may change, the old answer is suppressed rather than removed; an audit
    shows whether it can be elicited again.

    Args:
        forget: weight of the new answers' loss (the paper's lambda, tuned from 0.1 to 5).
        retain: weight of the loss on the retain set's own answers.
        text: weight of the loss on general text.
        retain_loss: ``"nll"``, or ``"kl"``, the divergence from the unedited model.

    Raises:
        TrainingError: a weight is out of its range, or there is no such ``retain_loss``.

    Example:
        >>> mu.objectives.Inject().requests["forget"].answer
        'new'

    Source: Guo et al., "Mechanistic Unlearning" (2024), L_injection.
    """

    aim: ClassVar[Literal["new", "forget"]] = "new"

    @property
    def requests(self) -> Mapping[str, Request]:
        """The new answers of the forget set, and the retained data."""
        return {"forget": Request("forget", answer="new"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``inject``, ``retain``, ``text``."""
        return {"inject": self.forget * nll(outputs["forget"]), **self.keep_terms(outputs)}


@dataclass(frozen=True, kw_only=True)
class Forget(RetainTerms):
    """Make the old answer improbable with a bounded loss: minimise ``-log(1 - p)`` of the whole answer.

    Unlike ascent on the negative log-likelihood, the loss is bounded below by 0 and its gradient vanishes
    once the answer is improbable, so training cannot diverge through it.

    When it fails: an answer that is no longer the most likely one costs almost nothing (at p = 0.1 the loss
    is 0.1), so it may remain the second choice.

    Args:
        forget: weight of the old answers' loss (the paper's lambda, tuned from 0.1 to 5).
        retain: weight of the loss on the retain set's own answers.
        text: weight of the loss on general text.
        retain_loss: ``"nll"``, or ``"kl"``, the divergence from the unedited model.
        threshold: answers with a log p below it contribute nothing, and still count in the mean; the paper
            uses -5. None for no limit.

    Raises:
        TrainingError: a weight or the threshold is out of its range, or there is no such ``retain_loss``.

    Example:
        >>> sorted(mu.objectives.Forget(text=0.0).requests)
        ['forget', 'retain']

    Source: Guo et al., "Mechanistic Unlearning" (2024), L_forget = log(1 - p).
    """

    threshold: float | int | None = None
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None:
            finite(TrainingError, threshold=self.threshold)

    @property
    def requests(self) -> Mapping[str, Request]:
        """The old answers of the forget set, and the retained data."""
        return {"forget": Request("forget"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        forget = -log1m_prob(outputs["forget"], threshold=self.threshold)
        return {"forget": self.forget * forget, **self.keep_terms(outputs)}
