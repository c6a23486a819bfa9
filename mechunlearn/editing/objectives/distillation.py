"""Self-distillation from a teacher without the old answer."""

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
    """Self-distillation from adjusted logits: the unedited model with a lower logit of the true token.

    Loss: the cross-entropy of the model with ``softmax(z_ref - beta onehot(answer))``, averaged over the
    tokens of the answers. It is bounded below, and its minimum is a model that remains fluent.

    When it fails: the target is fixed at the start; if beta is smaller than the gap between the logits of the
    true token and of the second, the answer remains the most likely one.

    Args:
        forget: weight of the distillation.
        retain: weight of the loss on the retain set's own answers; published 0.
        text: weight of the loss on general text; published 0.
        retain_loss: ``"nll"`` or ``"kl"``, for a retain term that is used.
        beta: how much the logit is lowered; the authors tried 3, 10 and 30.

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
        """The old answers with the unedited model's full distribution, and the retained data."""
        return {"forget": Request("forget", reference="logprobs"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        forget = undial(outputs["forget"], beta=self.beta)
        return {"forget": self.forget * forget, **self.keep_terms(outputs)}


@dataclass(frozen=True, kw_only=True)
class CEU(RetainTerms):
    """Cross-entropy unlearning: the teacher is the model's own distribution without the true token.

    Loss: the cross-entropy of the model with ``softmax(z)`` where ``z[answer] = -inf``, which carries no
    gradient, averaged over the tokens of the answers. The gradient with respect to the logits is ``p - q`` (q
    the teacher), so it is bounded, and the old token's logit is lowered in proportion to p. The teacher keeps
    the ratios of all other tokens.

    When it fails: the teacher follows the model, so in a long run the rest of the distribution drifts, as
    nothing fixes it.

    Args:
        forget: weight of the forget term.
        retain: weight of the loss on the retain set's own answers; published 0.
        text: weight of the loss on general text; published 0.
        retain_loss: ``"nll"`` or ``"kl"``, for a retain term that is used.
        skip: number of first tokens of an answer that are not trained; its last token always is. Published 1,
            for answers that are sentences, whose first token carries no fact; 0 here, since the first token
            of a short answer is the fact.

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
        """The old answers of the forget set, and the retained data."""
        return {"forget": Request("forget"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        forget = ceu(outputs["forget"], skip=self.skip)
        return {"forget": self.forget * forget, **self.keep_terms(outputs)}
