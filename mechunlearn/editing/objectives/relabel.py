"""Train on a text to forget, with the labels of a model that never read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mechunlearn.editing.objectives.losses import nll
from mechunlearn.editing.objectives.requests import Outputs, Request, Terms
from mechunlearn.editing.objectives.retain_terms import RetainTerms


@dataclass(frozen=True, kw_only=True)
class Relabel(RetainTerms):
    """Train on a corpus whose labels differ from its own next tokens, such as those of Who's Harry Potter.

    Loss: ``-mean log p(label)`` over the positions of the corpus that have a label.

    When it fails: it is as good as the labels. Labels that name what should be forgotten teach it; and
    questions about the text in other words may still be answered.

    Args:
        forget: weight of the loss on the corpus.
        retain: weight of the loss on the retain set's own answers; published 0: most labels are the text's
            own tokens, which preserve the rest.
        text: weight of the loss on general text; published 0.
        retain_loss: ``"nll"`` or ``"kl"``, for a retain term that is used.

    Raises:
        TrainingError: a weight is out of its range, or there is no such ``retain_loss``.

    Example:
        >>> mu.objectives.Relabel().requests["forget"].split
        'corpus'

    Source: Eldan and Russinovich, "Who's Harry Potter? Approximate Unlearning in LLMs" (2023).
    """

    retain: float | int = 0.0
    text: float | int = 0.0
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    @property
    def requests(self) -> Mapping[str, Request]:
        """The corpus, and the retained data."""
        return {"forget": Request("corpus"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``relabel``, ``retain``, ``text``."""
        return {"relabel": self.forget * nll(outputs["forget"]), **self.keep_terms(outputs)}
