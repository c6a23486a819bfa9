"""Learn the labels of a corpus: text to forget, with the labels of a model that never saw it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mechunlearn.editing.objectives.losses import nll
from mechunlearn.editing.objectives.requests import Outputs, Request, Terms
from mechunlearn.editing.objectives.retain_terms import RetainTerms


@dataclass(frozen=True, kw_only=True)
class Relabel(RetainTerms):
    """Train on a corpus whose labels are not its own next tokens, such as Who's Harry Potter's generic ones.

    Loss: ``-mean log p(label)`` over the positions of the corpus that have a label.

    When it fails: it is as good as the labels. Where they name the idiosyncratic, that is taught; and what
    can be asked about the text in other words is found to be there still.

    Args:
        forget: weight of the corpus.
        retain: weight of the retain set's own answers; 0, as published: most labels are the text's own
            tokens, which is what keeps the rest.
        text: weight of general text; 0, as published.
        retain_loss: ``"nll"`` or ``"kl"``, if anything is kept.

    Raises:
        TrainingError: a weight is out of its range, or there is no such way of keeping.

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
        """The corpus, and what is kept."""
        return {"forget": Request("corpus"), **self.keep_reads()}

    def __call__(self, outputs: Mapping[str, Outputs]) -> Terms:
        """The loss terms ``relabel``, ``retain``, ``text``."""
        return {"relabel": self.forget * nll(outputs["forget"]), **self.keep_terms(outputs)}
