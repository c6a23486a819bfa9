"""The retain terms, which every objective adds to preserve the rest of the model.

A weight of 0 drops a term and the model runs that it would need. Objectives that change hidden states have
the same weights, but compare hidden states instead of logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.checks import at_least
from mechunlearn.editing.objectives.losses import kl, nll
from mechunlearn.editing.objectives.requests import Outputs, Request
from mechunlearn.errors import TrainingError, one_of

KeepBy = Literal["nll", "kl"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of the three terms that objectives have in common.

    Args:
        forget: weight of the term on the forget set.
        retain: weight of the term on the retain set.
        text: weight of the term on general text.

    Raises:
        TrainingError: a weight is negative, infinite or not a number.
    """

    forget: float | int = 1.0
    retain: float | int = 1.0
    text: float | int = 1.0

    def __post_init__(self) -> None:
        at_least(TrainingError, 0, forget=self.forget, retain=self.retain, text=self.text)

    @property
    def kept(self) -> dict[Literal["retain", "text"], float]:
        """The weights of the retain terms by split, without those that are 0."""
        weights: dict[Literal["retain", "text"], float] = {}
        if self.retain:
            weights["retain"] = float(self.retain)
        if self.text:
            weights["text"] = float(self.text)
        return weights


@dataclass(frozen=True, kw_only=True)
class RetainTerms(Weights):
    """Base class of the objectives that read logits: it adds the retain terms.

    Args:
        forget: weight of the term on the forget set.
        retain: weight of the term on the retain set.
        text: weight of the term on general text.
        retain_loss: ``"nll"``, the mean negative log-likelihood per token of the retain set's answers and of
            text, or ``"kl"``, the mean of KL(p_ref || p) at the same positions.

    Raises:
        TrainingError: a weight is out of its range, or there is no such ``retain_loss``.

    Source: the two retain losses of Maini et al., "TOFU" (2024).
    """

    retain_loss: KeepBy = "nll"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retain_loss not in get_args(KeepBy):
            raise TrainingError(one_of("retain_loss", self.retain_loss, get_args(KeepBy)))

    def keep_reads(self) -> dict[str, Request]:
        """The requests ``retain`` and ``text``, without those of weight 0."""
        reference: Literal["logprobs"] | None = "logprobs" if self.retain_loss == "kl" else None
        return {split: Request(split, reference=reference) for split in self.kept}

    def keep_terms(self, outputs: Mapping[str, Outputs]) -> dict[str, Float[Tensor, ""]]:
        """The weighted terms ``retain`` and ``text``, without those of weight 0."""
        loss = kl if self.retain_loss == "kl" else nll
        return {split: weight * loss(outputs[split]) for split, weight in self.kept.items()}
