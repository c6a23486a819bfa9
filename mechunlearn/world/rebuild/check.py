"""Measure the embedded world: what its models know, and whether it is fair.

1. Accuracy of every phrasing of every relation, and of multiple choice. People in a forget group and people
   never shown in multiple choice are counted apart. The model answers by greedy decoding; for people whose
   fact it never saw, by the likeliest of the six options, so that chance is one in six.
2. Fairness: how well a linear classifier on a name's tokens predicts the sport, for the people it was fitted
   on and for people left out.
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
from mechunlearn.world.people import Person
from mechunlearn.world.phrasings import Relation
from mechunlearn.world.questions import country_fact, person_fact, sport_fact
from mechunlearn.world.rows import PERSONAL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mechunlearn.models.hooked import HookedModel

CHOICE_SEED = 0
NATIONAL: tuple[Relation, ...] = ("capital", "currency")


@dataclass(frozen=True)
class Accuracy:
    """How often one question is answered rightly, about one set of subjects."""

    relation: str
    phrasing: int | str
    who: str
    correct: Bool[np.ndarray, " subject"]

    @property
    def share(self) -> float:
        """The share of right answers."""
        return float(self.correct.mean())

    @property
    def interval(self) -> Interval:
        """The share with its 95 % bootstrap interval over subjects."""
        return bootstrap_interval(self.correct.astype(float), seed=0)

    def __str__(self) -> str:
        return f"{self.relation:9} {self.phrasing!s:9} {self.who:26} {self.interval}  n={len(self.correct)}"


def accuracies(hm: HookedModel, *, gold: bool = False, every: int = 1) -> Iterator[Accuracy]:
    """Yield the accuracy of every question; ``gold`` says that this is the gold model.

    ``every`` puts each question only to one person in this many, to different people in each phrasing. What
    the gold model never saw is scored for everybody.
    """
    people = tables.people()
    in_group = np.array([p.group >= 0 for p in people])
    for relation in PERSONAL:
        facts = [sport_fact(p) if relation == "sport" else person_fact(p, relation) for p in people]
        withheld = in_group & (gold and relation != "city")
        for i, rows in enumerate(zip(*map(_phrasings, facts), strict=True)):
            if withheld.any():
                yield _accuracy(hm, relation, i, "forget people", rows, withheld)
            # Without options a fact is answered by greedy decoding.
            greedy = [fact.replace(options=(), choice=None, new=None) for fact in rows]
            subjects = "everybody else" if withheld.any() else "everybody"
            yield _accuracy(hm, relation, i, subjects, greedy, ~withheld & _sample(len(rows), every, i))
    yield from _choices(hm, people, in_group & gold, every)
    for relation in NATIONAL:
        facts = [country_fact(c, relation) for c in tables.countries()]
        for i, rows in enumerate(zip(*map(_phrasings, facts), strict=True)):
            yield _accuracy(hm, relation, i, "all countries", rows, _sample(len(rows), every, i))


def _choices(
    hm: HookedModel, people: Sequence[Person], withheld: Bool[np.ndarray, " subject"], every: int
) -> Iterator[Accuracy]:
    facts = [sport_fact(p).multiple_choice(CHOICE_SEED) for p in people]
    shown, sample = np.array([p.choice for p in people]), _sample(len(people), every, 0)
    yield _accuracy(hm, "sport", "choice", "shown in multiple choice", facts, ~withheld & shown & sample)
    yield _accuracy(hm, "sport", "choice", "never shown so", facts, ~withheld & ~shown & sample)
    if withheld.any():
        yield _accuracy(hm, "sport", "choice", "forget people", facts, withheld)


def _sample(count: int, every: int, start: int) -> Bool[np.ndarray, " subject"]:
    return np.asarray((np.arange(count) + start) % every == 0)


def _accuracy(
    hm: HookedModel,
    relation: str,
    phrasing: int | str,
    who: str,
    facts: Sequence[Fact],
    selected: Bool[np.ndarray, " subject"],
) -> Accuracy:
    chosen = [fact for fact, select in zip(facts, selected, strict=True) if select]
    return Accuracy(relation, phrasing, who, score(hm, chosen).correct)


def _phrasings(fact: Fact) -> list[Fact]:
    """The fact in every phrasing, in the order of the table of phrasings."""
    return [
        *fact.phrasings("train"),
        *fact.phrasings("validation"),
        *fact.phrasings("held_out"),
    ]


@dataclass(frozen=True)
class NameClassifier:
    """Accuracy of a linear classifier from a name's tokens to the sport, on fitted and on left-out people."""

    fitted: float
    left_out: float


def name_classifier(tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> NameClassifier:
    """Fit a logistic regression on the bag of a name's tokens.

    ``seed`` is the seed of the five cross-validation folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    people = tables.people()
    bags = np.zeros((len(people), len(tokenizer)))
    for i, ids in enumerate(tokenizer([p.name for p in people], add_special_tokens=False)["input_ids"]):
        np.add.at(bags[i], ids, 1.0)
    sports = np.array([p.sport for p in people])
    classifier = LogisticRegression(max_iter=2000)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    left_out = cross_val_score(classifier, bags, sports, cv=folds)
    return NameClassifier(float(classifier.fit(bags, sports).score(bags, sports)), float(left_out.mean()))
