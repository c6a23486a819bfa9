"""Learn which weights to take away, instead of what to add to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.checks import at_least, integer, require
from mechunlearn.editing.objectives.likelihood import Forget
from mechunlearn.editing.objectives.requests import Objective, Outputs, Request, State, Stateful, Terms
from mechunlearn.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class WeightMask:
    """Another objective, reached by masking weights: every weight becomes ``m w``, with m from 0 to 1.

    How few weights must go before the fact does is a measure of how small an edit can be. Loss: that of the
    inner objective, plus ``c(t) * mean(1 - m)`` over each weight tensor, averaged over tensors, with
    ``c(t) = strength * min(t - patience, 1)``: below 0 for the first steps, where masking is paid for, and
    ``strength`` afterwards, where masks that do not matter return to 1.

    Masks move by about the learning rate at each step: give ``lr`` of 0.05 to 0.2, not the thousandth that
    suits deltas, or no mask comes near 0.

    When it fails: a fact that no weight holds alone takes a great many; masks between 0 and 1 must be
    rounded, and what was learned need not survive it.

    Args:
        loss: the objective that is to be reached; the paper's is ``Forget``, at a weight of 0.4.
        strength: of the price of masking, in nats for masking everything. The paper's 3e-7 is too small to be
            felt beside the other terms.
        patience: steps after which the price is 0; the paper's 15 of 50.

    Raises:
        TrainingError: the loss is no objective, or masks already; or a number is out of its range.

    Example:
        >>> list(mu.objectives.WeightMask(strength=1.0).requests)
        ['forget', 'retain', 'text']

    Source: Guo et al., "Mechanistic Unlearning" (2024), the learned masks of the edit-size analysis.
    """

    loss: Objective = field(default_factory=lambda: Forget(forget=0.4))
    strength: float | int = 1.0
    patience: int = 15

    def __post_init__(self) -> None:
        inner: object = self.loss
        known = isinstance(inner, Objective) and not isinstance(inner, type)
        require(known, TrainingError, "loss", inner, "an objective such as objectives.Forget()")
        if isinstance(inner, WeightMask):
            raise TrainingError("loss is a WeightMask itself; give the objective that it wraps")
        at_least(TrainingError, 0, strength=self.strength)
        integer(TrainingError, 0, patience=self.patience)

    @property
    def aim(self) -> Literal["new", "forget"]:
        """The inner objective's."""
        return self.loss.aim

    @property
    def requests(self) -> Mapping[str, Request]:
        """The inner objective's."""
        return self.loss.requests

    def init(self, outputs: Mapping[str, Outputs], *, seed: int) -> State:
        """The inner objective's state, if it has one."""
        return self.loss.init(outputs, seed=seed) if isinstance(self.loss, Stateful) else {}

    def __call__(self, outputs: Mapping[str, Outputs], state: State) -> Terms:
        """The inner objective's loss terms."""
        loss: Any = self.loss
        terms: Terms = loss(outputs, state) if isinstance(loss, Stateful) else loss(outputs)
        return terms

    def after_step(self, state: State, terms: Terms) -> State:
        """The inner objective's state, if it has one."""
        return self.loss.after_step(state, terms) if isinstance(self.loss, Stateful) else state

    def penalty(self, removed: Mapping[str, Float[Tensor, "..."]], *, step: int) -> Terms:
        """The term ``mask``: the price, or at first the reward, of what is masked away.

        Args:
            removed: how much of each weight is masked away, from 0 to 1, by the name of its tensor.
            step: the number of the step, from 0.
        """
        share = torch.stack([gone.mean() for gone in removed.values()]).mean()
        return {"mask": self.strength * min(step - self.patience, 1) * share}
