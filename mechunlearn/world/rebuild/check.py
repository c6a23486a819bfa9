"""Measure the embedded world: what its models know, and whether it is fair.

1. Accuracy of every phrasing of every relation, over everybody, and of multiple choice; people in a
   forget group and people never shown in multiple choice are counted apart. Answers are what greedy
   decoding says; for people whose fact the model never saw, the likeliest of the six options, so that
   chance is one in six.
2. Fairness: how well a linear reader of a name's tokens predicts the sport, on the people it was fitted
   on and on people left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.statistics import Interval, bootstrap_interval
from mechunlearn.models.scoring.scorer import score
from mechunlearn.world import tables
from mechunlearn.world.asking import country_fact, other_fact, sport_fact
from mechunlearn.world.draw import Person
from mechunlearn.world.phrasings import Relation
from mechunlearn.world.rows import PERSONAL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mechunlearn.models.hooked import HookedModel

CHOICE_SEED = 0
NATIONAL: tuple[Relation, ...] = ("capital", "currency")


@dataclass(frozen=True)
class Accuracy:
    """How often one question is answered rightly, by one set of subjects."""

    relation: str
    phrasing: int | str
    who: str
    correct: Bool[np.ndarray, " subject"]

    @property
    def share(self) -> float:
        """Right answers as a share of all."""
        return float(self.correct.mean())

    @property
    def interval(self) -> Interval:
        """The share with its 95 % bootstrap interval over subjects."""
        return bootstrap_interval(self.correct.astype(float), seed=0)

    def __str__(self) -> str:
        """One line of the table."""
        return f"{self.relation:9} {self.phrasing!s:9} {self.who:26} {self.interval}  n={len(self.correct)}"


def accuracies(hm: HookedModel, *, gold: bool = False) -> Iterator[Accuracy]:
    """Yield the accuracy of every question.

    Args:
        hm: a model of the embedded world.
        gold: whether it is the gold model, which never saw some people's sport, league and place.

    Example:
        >>> from mechunlearn.world import model
        >>> next(accuracies(model())).relation
        'sport'
    """
    people = tables.people()
    forgotten = [p.group >= 0 for p in people]
    for relation in PERSONAL:
        asked = [_asked(p, relation) for p in people]
        unseen = gold and relation != "city"
        for i in range(len(asked[0])):
            facts = [phrasings[i] for phrasings in asked]
            if unseen:
                yield _of(hm, relation, i, "forget people", facts, forgotten)
            kept = [not f for f in forgotten] if unseen else [True] * len(people)
            greedy = [fact.replace(options=(), choice=None, new=None) for fact in facts]
            yield _of(hm, relation, i, "everybody else" if unseen else "everybody", greedy, kept)
    yield from _choices(hm, people, gold=gold)
    for relation in NATIONAL:
        countries = [_phrasings(country_fact(c, relation)) for c in tables.countries()]
        for i in range(len(countries[0])):
            facts = [phrasings[i] for phrasings in countries]
            yield _of(hm, relation, i, "all countries", facts, [True] * len(facts))


def _choices(hm: HookedModel, people: Sequence[Person], *, gold: bool) -> Iterator[Accuracy]:
    facts = [sport_fact(p).multiple_choice(CHOICE_SEED) for p in people]
    told = [not (gold and p.group >= 0) for p in people]
    shown = [t and p.choice for t, p in zip(told, people, strict=True)]
    never = [t and not p.choice for t, p in zip(told, people, strict=True)]
    yield _of(hm, "sport", "choice", "shown in multiple choice", facts, shown)
    yield _of(hm, "sport", "choice", "never shown so", facts, never)
    if gold:
        yield _of(hm, "sport", "choice", "forget people", facts, [not t for t in told])


def _of(
    hm: HookedModel, relation: str, phrasing: int | str, who: str, facts: Sequence[Fact], keep: list[bool]
) -> Accuracy:
    chosen = [fact for fact, kept in zip(facts, keep, strict=True) if kept]
    return Accuracy(relation, phrasing, who, score(hm, chosen).correct)


def _asked(person: Person, relation: Relation) -> list[Fact]:
    return _phrasings(sport_fact(person) if relation == "sport" else other_fact(person, relation))


def _phrasings(fact: Fact) -> list[Fact]:
    """The fact in every phrasing, in the order of the table of phrasings."""
    return [
        *fact.phrasings("train"),
        *fact.phrasings("validation"),
        *fact.phrasings("held_out"),
    ]


@dataclass(frozen=True)
class NameReader:
    """What a linear reader of name tokens makes of the sport: accuracy where fitted, and left out."""

    fitted: float
    left_out: float


def name_reader(tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> NameReader:
    """Fit a logistic regression on the bag of a name's tokens.

    Args:
        tokenizer: of the world.
        seed: of the five folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    people = tables.people()
    bags = np.zeros((len(people), len(tokenizer)))
    for i, ids in enumerate(tokenizer([p.name for p in people], add_special_tokens=False)["input_ids"]):
        np.add.at(bags[i], ids, 1.0)
    sports = np.array([p.sport for p in people])
    reader = LogisticRegression(max_iter=2000)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    left_out = cross_val_score(reader, bags, sports, cv=folds)
    return NameReader(float(reader.fit(bags, sports).score(bags, sports)), float(left_out.mean()))
