"""What an attack is, and what it may see.

1. An attack is a search: it gets a model, a context and a seed, and returns an ``Intervention``. It never
   scores anything; the audit applies the intervention and scores it on facts that the attack never saw.
2. The audit splits the forget facts by subject into two halves (``halves``): the attack sees the first, and
   is judged on the second.
3. The context shows a fact's training phrasings and its answers: no other phrasing, no multiple choice, no
   related fact. It never holds test facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mechunlearn.auditing.attacks.intervention import Intervention
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True)
class Context:
    """What an attack may see; a field is None where the attack may not see it.

    Args:
        forget: the half of the forget facts that may be seen, with their old answers.
        retain: the retain facts.
        text: the general text that may be trained on.
        original: the model before the edit.

    Example:
        >>> facts = Facts([Fact("Mary plays", "Mary", "golf", held_out=("Mary is known for",))])
        >>> context = Context.of(facts, facts.forget)
        >>> context.forget[0].held_out, context.original
        ((), None)
    """

    forget: tuple[Fact, ...]
    retain: tuple[Fact, ...] | None = None
    text: tuple[str, ...] | None = None
    original: HookedModel | None = None

    @classmethod
    def of(cls, facts: Facts, seen: Sequence[Fact], *, original: HookedModel | None = None) -> Context:
        """Make a context of facts, without the phrasings and related facts that attacks are judged on.

        Args:
            facts: the facts, of which the retain set and the training text are shown.
            seen: the forget facts that are shown.
            original: the model before the edit.
        """
        return cls(
            forget=tuple(_training_only(fact) for fact in seen),
            retain=tuple(_training_only(fact) for fact in facts.retain),
            text=facts.train_text,
            original=original,
        )


@runtime_checkable
class Attack(Protocol):
    """A search for an intervention. Any object with these two is one; nothing is registered."""

    @property
    def name(self) -> str:
        """Name of the attack, and of its section in the report."""
        ...

    def search(self, hm: HookedModel, context: Context, *, seed: int) -> Intervention:
        """Search for an intervention; the model stays as it is."""
        ...


def _training_only(fact: Fact) -> Fact:
    return fact.replace(validation=(), held_out=(), choice=None, entailed=(), others=(), neighbours={})
