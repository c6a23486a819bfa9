"""Learn which weights to remove, instead of what to add to them."""

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
    """Reach another objective by masking weights: every weight w becomes ``m w``, with m from 0 to 1.

    The number of weights that must be masked before a fact is forgotten measures how small an edit can be.
    Loss: that of the inner objective, plus ``c(t) * mean(1 - m)`` over each weight tensor, averaged over
    tensors, with ``c(t) = strength * min(t - patience, 1)``. In the first steps c is negative, which rewards
    masking; afterwards it is ``strength``, so that masks without effect return to 1.

    A mask changes by about the learning rate at each step: use ``lr`` of 0.05 to 0.2, not the 0.001 that
    suits deltas, or no mask comes near 0.

    When it fails: a fact that is spread over many weights needs many masks; masks between 0 and 1 must be
    rounded, and rounding can undo what was learned.

    Args:
        loss: the inner objective; the paper's is ``Forget``, at a weight of 0.4.
        strength: penalty for masking everything, in nats. The paper's 3e-7 is too small to matter beside the
            other terms.
        patience: step at which the penalty is 0; the paper's 15 of 50.

    Raises:
        TrainingError: the loss is not an objective, or is a mask itself; or a number is out of its range.

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
        # A class that has the attributes passes the protocol check, so exclude classes.
        valid = isinstance(inner, Objective) and not isinstance(inner, type)
        require(valid, TrainingError, "loss", inner, "an objective such as objectives.Forget()")
        if isinstance(inner, WeightMask):
            raise TrainingError("loss is a WeightMask itself; give the objective that it wraps")
        at_least(TrainingError, 0, strength=self.strength)
        integer(TrainingError, 0, patience=self.patience)

    @property
    def aim(self) -> Literal["new", "forget"]:
        """The inner objective's aim."""
        return self.loss.aim

    @property
    def requests(self) -> Mapping[str, Request]:
        """The inner objective's requests."""
        return self.loss.requests

    def init(self, outputs: Mapping[str, Outputs], *, seed: int) -> State:
        """The inner objective's state, or an empty one."""
        return self.loss.init(outputs, seed=seed) if isinstance(self.loss, Stateful) else {}

    def __call__(self, outputs: Mapping[str, Outputs], state: State) -> Terms:
        """The inner objective's loss terms."""
        loss: Any = self.loss
        terms: Terms = loss(outputs, state) if isinstance(loss, Stateful) else loss(outputs)
        return terms

    def after_step(self, state: State, terms: Terms) -> State:
        """The inner objective's next state, if it has one."""
        return self.loss.after_step(state, terms) if isinstance(self.loss, Stateful) else state

    def penalty(self, removed: Mapping[str, Float[Tensor, "..."]], *, step: int) -> Terms:
        """The term ``mask``: the penalty for masked weights, negative before step ``patience``.

        ``removed`` is 1 minus the mask of each weight, by the name of its tensor; ``step`` counts from 0.
        """
        share = torch.stack([part.mean() for part in removed.values()]).mean()
        return {"mask": self.strength * min(step - self.patience, 1) * share}
