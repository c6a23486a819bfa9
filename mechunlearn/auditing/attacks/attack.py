"""What an attack is, and what it may see.

1. An attack is a search: it is given a model, a context and a seed, and returns an ``Intervention``. It
   never scores anything; the audit applies what was found and scores it on facts the attack never saw.
2. The forget facts are dealt into two halves by subject (``halves``): what an attack may see, and what it
   is judged on.
3. The context holds what the attack declares in ``requires`` and raises on anything else. A fact in it is
   its training phrasings and its answer: no other phrasing, no multiple choice, no related fact.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from mechunlearn.auditing.attacks.intervention import Intervention
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.errors import FactError, one_of
from mechunlearn.models.hooked import HookedModel

Resource = Literal["forget", "retain", "text", "original"]
RESOURCES: tuple[Resource, ...] = get_args(Resource)


@dataclass(frozen=True)
class Context:
    """What an attack may see: what it declared, and nothing else.

    Example:
        >>> facts = Facts([Fact("Mary plays", "Mary", "golf", held_out=("Mary is known for",))])
        >>> Context.of(facts, facts.forget, declared={"forget"}).forget[0].held_out
        ()
    """

    declared: frozenset[Resource]
    _given: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(
        cls,
        facts: Facts,
        seen: Sequence[Fact],
        *,
        declared: set[Resource] | frozenset[Resource],
        original: HookedModel | None = None,
    ) -> Context:
        """Put together what may be seen.

        Args:
            facts: with the retain set and the text.
            seen: the forget facts that may be seen.
            declared: what the attack requires.
            original: the model before the edit.

        Raises:
            FactError: something else than the known resources is declared.
        """
        for name in declared:
            if name not in RESOURCES:
                raise FactError(one_of("requires", name, RESOURCES))
        given = {
            "forget": tuple(_bare(fact) for fact in seen),
            "retain": tuple(_bare(fact) for fact in facts.retain),
            "text": facts.train_text,
            "original": original,
        }
        return cls(frozenset(declared), given)

    @property
    def forget(self) -> tuple[Fact, ...]:
        """The forget facts that may be seen, with their old answers."""
        return tuple(self._read("forget"))

    @property
    def retain(self) -> tuple[Fact, ...]:
        """The retain facts."""
        return tuple(self._read("retain"))

    @property
    def text(self) -> tuple[str, ...]:
        """The general text that may be trained on."""
        return tuple(self._read("text"))

    @property
    def original(self) -> HookedModel:
        """The model before the edit."""
        found = self._read("original")
        if not isinstance(found, HookedModel):
            raise FactError("the context has no original model; build it with Context.of(..., original=hm)")
        return found

    def _read(self, name: Resource) -> Any:
        if name not in self.declared:
            raise FactError(
                f"the attack reads {name!r} but declares only {sorted(self.declared)}; add it to `requires`"
            )
        return self._given[name]


@runtime_checkable
class Attack(Protocol):
    """A search for an intervention. Any object with these three is one; nothing is registered."""

    @property
    def name(self) -> str:
        """What the report calls its section."""
        ...

    @property
    def requires(self) -> frozenset[Resource]:
        """What it reads from the context."""
        ...

    def search(self, hm: HookedModel, context: Context, *, seed: int) -> Intervention:
        """Find an intervention; the model stays as it is."""
        ...


def halves(facts: Sequence[Fact], *, seed: int) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """Deal facts into what an attack may see and what it is judged on.

    All facts of one subject fall on one side, for one could give another away; if all are about one
    subject, they are dealt one by one.

    Args:
        facts: the forget facts.
        seed: of the deal.

    Example:
        >>> seen, judged = halves([Fact(f"{name} plays", name, "golf") for name in "ABCD"], seed=0)
        >>> len(seen), len(judged), {f.subject for f in seen} & {f.subject for f in judged}
        (2, 2, set())
    """
    subjects = sorted({fact.subject for fact in facts})
    keys = [fact.subject if len(subjects) > 1 else fact.prompt for fact in facts]
    unique = sorted(set(keys))
    chosen = set(random.Random(seed).sample(unique, len(unique) // 2))
    pairs = list(zip(keys, facts, strict=True))
    return tuple(f for key, f in pairs if key in chosen), tuple(f for key, f in pairs if key not in chosen)


def _bare(fact: Fact) -> Fact:
    return fact.replace(validation=(), held_out=(), choice=None, entailed=(), others=(), neighbours={})
