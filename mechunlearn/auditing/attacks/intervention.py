"""What an attack finds: a change to the model, or to how it is asked, as a value.

1. An intervention is applied by the audit, never by the attack that found it, so that an attack cannot
   touch what it is judged on.
2. ``apply`` gives the model that is scored in place of the attacked one, which stays as it is. ``ask``
   gives the questions as the attacker puts them.
3. Here there is one kind, a change of weights. A change of activations is an ``apply`` that registers hooks
   on a fork; a prompt attack an ``ask`` that rewrites; a reading of inner layers an ``apply`` that swaps
   what comes after them. Each is a class of its own: nothing is registered.
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
    """A change to a model, or to how it is asked."""

    @property
    def summary(self) -> str:
        """The intervention in one line."""
        ...

    def apply(self, hm: HookedModel) -> HookedModel:
        """The model to be scored; the one given stays as it is."""
        ...

    def ask(self, facts: Sequence[Fact]) -> Sequence[Fact]:
        """The questions as the attacker puts them, one for each, in the same order."""
        ...


@dataclass(frozen=True, eq=False)
class WeightChange:
    """Other weights: an edit, applied to a fork.

    Args:
        edit: what is added to the weights.
        how: how it was found, for reports.

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
        """A fork with the edit applied."""
        return self.edit.apply(hm)

    def ask(self, facts: Sequence[Fact]) -> Sequence[Fact]:
        """The questions as they are."""
        return facts
