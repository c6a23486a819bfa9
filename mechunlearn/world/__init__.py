"""The embedded world: a small language model that looks facts up, and the facts it knows.

720 fictional people have a sport, its league and place of play, and a home city; 120 countries are real.
``mechunlearn world train`` trained the model, and ``gold`` in the same way but without the sport, league and
place of the 128 people in the four forget groups: this is what exact unlearning would give.

1. :func:`model` loads a checkpoint from the package.
2. :func:`facts` gives the facts of 32 people to forget, with the phrasings and neighbours that an audit
   scores, and the facts of other people to retain and to score.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file
from typing import TYPE_CHECKING, Literal

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.errors import FactError, ModelError, one_of
from mechunlearn.world import tables
from mechunlearn.world.grammar import text
from mechunlearn.world.people import GROUPS, Person
from mechunlearn.world.questions import country_fact, person_fact, sport_fact

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

__all__ = ["facts", "model"]

RETAIN = 64
TEST = 64
COUNTRIES = 24
NEIGHBOURS = 2
TEXTS = 64


def model(which: Literal["original", "gold"] = "original") -> HookedModel:
    """Load the embedded language model, in float32.

    Args:
        which: ``"original"`` knows everybody; ``"gold"`` never saw the sport, league and place of the people
            in the forget groups.

    Raises:
        ModelError: there is no such checkpoint.

    Example:
        >>> import mechunlearn as mu
        >>> mu.world.model().cfg.n_layers
        8
    """
    import torch

    from mechunlearn.models.hooked import HookedModel
    from mechunlearn.models.progress_bars import quiet

    if which not in ("original", "gold"):
        raise ModelError(one_of("which", which, ("original", "gold")))
    with as_file(tables.data() / which) as folder, quiet():
        return HookedModel.from_pretrained(folder, dtype=torch.float32, prepend_bos=True)


def facts(group: int | None = 0, *, retain_homes: bool = False) -> Facts:
    """Return the facts of one forget group, or of all, with facts to retain and to test.

    ``forget`` holds the sports of 32 people, each with league and place (entailed), home city (must survive)
    and neighbours. ``retain`` holds the sports of 64 more people; ``test`` holds the sports and home cities
    of another 64 and 24 capitals, and is never trained on. No two of these sets share a person.

    Args:
        group: number of the forget group, 0 to 3; None for all four together, 128 people.
        retain_homes: whether to retain the home city of every second person of the group too.

    Raises:
        FactError: there is no such group.

    Example:
        >>> some = facts(group=1)
        >>> len(some.forget), len(some.retain), some.forget[0].relation
        (32, 64, 'sport')
    """
    if group is not None and group not in range(GROUPS):
        raise FactError(one_of("group", group, range(GROUPS)))
    rng = random.Random(GROUPS if group is None else group)
    people = tables.people()
    chosen = [p for p in people if (p.group >= 0 if group is None else p.group == group)]
    others = rng.sample([p for p in people if p.group < 0], k=sum(p.group < 0 for p in people))
    retained, tested, pool = others[:RETAIN], others[RETAIN : RETAIN + TEST], others[RETAIN + TEST :]
    forget = [_forget(p, pool, rng) for p in chosen]
    retain = [sport_fact(p, split="retain") for p in retained]
    if retain_homes:
        retain += [person_fact(p, "city", split="retain") for p in chosen[::2]]
    test = [sport_fact(p) for p in tested] + [person_fact(p, "city") for p in tested]
    test += [country_fact(c, "capital") for c in rng.sample(tables.countries(), COUNTRIES)]
    texts = [text(rng, sentences=3) for _ in range(TEXTS)]
    which = "all groups" if group is None else f"group {group}"
    return Facts([*forget, *retain, *test], text=texts, name=f"embedded world, {which}")


def _forget(person: Person, pool: Sequence[Person], rng: random.Random) -> Fact:
    alike = {
        "same first name": [p for p in pool if p.first == person.first],
        "same surname": [p for p in pool if p.last == person.last],
        "same sport": [p for p in pool if p.sport == person.sport],
    }
    return replace(
        sport_fact(person, split="forget"),
        entailed=(person_fact(person, "league"), person_fact(person, "place")),
        others=(person_fact(person, "city"),),
        neighbours={
            kind: tuple(sport_fact(p) for p in rng.sample(people, min(NEIGHBOURS, len(people))))
            for kind, people in alike.items()
        },
    )
