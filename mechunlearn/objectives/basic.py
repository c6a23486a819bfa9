"""Three objectives: write a new answer, make the old one improbable, ascend its loss.

Each adds the same two terms that keep the rest in place: the retain set's own answers, and general
text. A weight of 0 drops a term, and what it would have read is then not computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mechunlearn.objectives.losses import log1m_prob, nll
from mechunlearn.objectives.reading import Answer, Read, Reading, Terms


def _reads(answer: Answer, retain: float, text: float) -> Mapping[str, Read]:
    reads = {"forget": Read("forget", answer=answer)}
    if retain:
        reads["retain"] = Read("retain")
    if text:
        reads["text"] = Read("text")
    return reads


def _keep(readings: Mapping[str, Reading], retain: float, text: float) -> Terms:
    weights = {"retain": retain, "text": text}
    return {name: weight * nll(readings[name]) for name, weight in weights.items() if weight}


@dataclass(frozen=True)
class Inject:
    """Write another answer over the old one: the likelihood of ``new`` is raised.

    The paper's editing task. Loss: ``-log p(new)`` per token, plus ``retain`` and ``text`` terms.

    Args:
        retain: weight of the retain set's own answers.
        text: weight of general text.

    Example:
        >>> Inject().reads["forget"]
        Read(split='forget', answer='new', positions='answer', hidden=None, reference=False)

    Source: Guo et al., "Mechanistic Unlearning" (2024), L_injection.
    """

    retain: float = 1.0
    text: float = 1.0
    aim: ClassVar[Literal["new", "forget"]] = "new"

    @property
    def reads(self) -> Mapping[str, Read]:
        """The new answers of the forget set, the retain set's answers, text."""
        return _reads("new", self.retain, self.text)

    def __call__(self, readings: Mapping[str, Reading]) -> Terms:
        """The loss terms ``inject``, ``retain``, ``text``."""
        return {"inject": nll(readings["forget"]), **_keep(readings, self.retain, self.text)}


@dataclass(frozen=True)
class Forget:
    """Make the old answer improbable, boundedly: minimise ``-log(1 - p)``.

    Unlike ascent on the likelihood, the loss is bounded below by 0 and its gradient vanishes once the
    answer is gone, so there is nothing to run away with.

    Args:
        retain: weight of the retain set's own answers.
        text: weight of general text.

    Example:
        >>> sorted(Forget(text=0.0).reads)
        ['forget', 'retain']

    Source: Guo et al., "Mechanistic Unlearning" (2024), L_forget = log(1 - p).
    """

    retain: float = 1.0
    text: float = 1.0
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    @property
    def reads(self) -> Mapping[str, Read]:
        """The old answers of the forget set, the retain set's answers, text."""
        return _reads("answer", self.retain, self.text)

    def __call__(self, readings: Mapping[str, Reading]) -> Terms:
        """The loss terms ``forget``, ``retain``, ``text``."""
        return {"forget": -log1m_prob(readings["forget"]), **_keep(readings, self.retain, self.text)}


@dataclass(frozen=True)
class GradientDifference:
    """Ascend the old answer's loss while descending the retain set's.

    The forget term ``+log p(answer)`` has no lower bound: without an early stop it ends in divergence,
    which the trainer reports as an error.

    Args:
        forget: weight of the ascent.
        retain: weight of the retain set's own answers.
        text: weight of general text.

    Example:
        >>> GradientDifference(forget=0.5).aim
        'forget'

    Source: Liu et al., "Continual Learning and Private Unlearning" (2022); Maini et al., "TOFU" (2024).
    """

    forget: float = 1.0
    retain: float = 1.0
    text: float = 1.0
    aim: ClassVar[Literal["new", "forget"]] = "forget"

    @property
    def reads(self) -> Mapping[str, Read]:
        """The old answers of the forget set, the retain set's answers, text."""
        return _reads("answer", self.retain, self.text)

    def __call__(self, readings: Mapping[str, Reading]) -> Terms:
        """The loss terms ``ascent``, ``retain``, ``text``."""
        ascent = -self.forget * nll(readings["forget"])
        return {"ascent": ascent, **_keep(readings, self.retain, self.text)}
