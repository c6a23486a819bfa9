"""An intervention: the result of an attack, a change to the model or to its questions, as a value.

1. The audit applies an intervention, never the attack itself, so that an attack cannot touch the facts that
   it is judged on.
2. ``apply`` returns the model to score instead of the attacked one, which stays as it is. ``ask`` returns
   the questions as the attacker words them.
3. This module has one kind, a change of weights. An intervention on activations is an ``apply`` that
   registers hooks on a fork; a prompt attack is an ``ask`` that rewrites the prompts; a reading of inner
   layers is an ``apply`` that replaces the later ones. Any class with these methods is an intervention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mechunlearn.core.facts.fact import Fact
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.models.hooked import HookedModel


@runtime_checkable
class Intervention(Protocol):
    """A change to a model or to its questions."""

    @property
    def summary(self) -> str:
        """The intervention in one line."""
        ...

    def apply(self, hm: HookedModel) -> HookedModel:
        """Return the model to score; `hm` stays as it is."""
        ...

    def ask(self, facts: Sequence[Fact]) -> Sequence[Fact]:
        """Return the questions as the attacker words them, one for each, in the same order."""
        ...


@dataclass(frozen=True, eq=False)
class WeightChange:
    """An intervention on weights: an edit, applied to a fork.

    Args:
        edit: the change of the weights.
        how: how the attack made it, for reports.

    Example:
        >>> WeightChange(mu.Edit((), mu.Localization()), how="nothing").summary
        'nothing'
    """

    edit: Edit
    how: str = "weights changed"

    @property
    def summary(self) -> str:
        """The intervention in one line."""
        return self.how

    def apply(self, hm: HookedModel) -> HookedModel:
        """Return a fork with the edit applied."""
        return self.edit.apply(hm)

    def ask(self, facts: Sequence[Fact]) -> Sequence[Fact]:
        """Return the questions as they are."""
        return facts
