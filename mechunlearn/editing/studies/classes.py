"""Forget a whole class: train on half of its members, and score the half that was never trained on.

1. The members are all facts with one answer, in whatever split they stand: a member left in the retain set
   would hold the class in place.
2. They are dealt into two halves by subject. Training sees the one; the other is asked only once the edit
   is chosen.
3. Facts with another answer keep their split, except that those of the forget set are retained: the class
   alone is to go.
4. With a new answer, every member gets the same one.

What the unseen half loses was cut with the class; what it keeps was cut fact by fact.

Source: the full-sport tasks of Guo et al., "Mechanistic Unlearning" (2024): all athletes of one sport, split
in halves, answered with golf.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.statistics import Interval
from mechunlearn.core.viz.curves import bar_plot
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.objectives.reading import Objective
from mechunlearn.editing.studies import shares
from mechunlearn.editing.studies.shares import EDITED, UNTOUCHED, Share
from mechunlearn.editing.training.fitting import edit
from mechunlearn.errors import FactError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from mechunlearn.models.hooked import HookedModel

TRAINED, UNSEEN, MAINTAINED = "trained", "unseen", "maintained"


@dataclass(frozen=True, eq=False, repr=False)
class ClassResult:
    """What forgetting a class on half of its members did to both halves and to the rest.

    Args:
        answer: the class.
        new: what its members were to answer instead; None if each has its own, or none.
        edit: the edit that was fitted.
        trained: the members it was fitted on.
        unseen: the others.
        table: the shares that were measured: of every set of facts, in every kind of phrasing, the
            ``"answer"`` and, of members, the ``"new"`` answer; untouched, edited and the difference.
    """

    answer: str
    new: str | None
    edit: Edit
    trained: Facts
    unseen: Facts
    table: tuple[Share, ...]

    def interval(
        self, facts: str = UNSEEN, *, phrasing: str = "held_out", metric: str = "answer", model: str = EDITED
    ) -> Interval:
        """One share with its interval.

        Args:
            facts: ``"trained"``, ``"unseen"`` or ``"maintained"``.
            phrasing: ``"train"``, ``"validation"`` or ``"held_out"``.
            metric: ``"answer"`` or ``"new"``.
            model: ``"edited"``, ``"untouched"`` or ``"edited − untouched"``.

        Raises:
            FactError: nothing was measured under a name.
        """
        return shares.pick(self.table, facts=facts, phrasing=phrasing, metric=metric, model=model)

    def to_frame(self) -> pd.DataFrame:
        """One share a row: model, facts, phrasing, metric, value, low, high, n."""
        return shares.frame(self.table)

    def plot(self) -> go.Figure:
        """Draw the old and the new answer's shares in both halves and in what was maintained."""
        places = list(dict.fromkeys((share.facts, share.phrasing) for share in self.table))
        bars = {
            "untouched, old answer": (UNTOUCHED, "answer"),
            "edited, old answer": (EDITED, "answer"),
            "edited, new answer": (EDITED, "new"),
        }
        found = {(s.facts, s.phrasing, s.model, s.metric): s for s in self.table}
        heights, bands = {}, {}
        for name, key in bars.items():
            if any((*place, *key) in found for place in places):
                cells = [found.get((*place, *key)) for place in places]
                value, low, high = np.array([s[4:7] if s else [np.nan] * 3 for s in cells], dtype=float).T
                heights[name], bands[name] = value, (low, high)
        title = f"{self._what}: trained on half of the members"
        x = [f"{facts}, {phrasing}" for facts, phrasing in places]
        figure = bar_plot(heights, x=x, title=title, unit="share of facts", bands=bands)
        figure.update_xaxes(tickvals=list(range(len(x))), ticktext=[text.replace(", ", "<br>") for text in x])
        return figure.update_yaxes(range=[0, 1.05], tickformat=".1f").update_layout(
            height=380, legend_y=-0.22
        )

    @property
    def _what(self) -> str:
        return f"forgetting {self.answer}" if self.new is None else f"{self.answer} to {self.new}"

    def __repr__(self) -> str:
        head = f"ClassResult({self._what}; {len(self.trained)} members trained on, {len(self.unseen)} unseen)"
        found = {(s.facts, s.phrasing, s.metric, s.model): s.interval for s in self.table}
        lines = [
            f"  {facts}, {phrasing}, {metric}: {found[facts, phrasing, metric, UNTOUCHED].mean:.2f} -> {at}"
            for (facts, phrasing, metric, model), at in found.items()
            if model == EDITED
        ]
        return "\n".join([head, *lines])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {**self.plot()._repr_mimebundle_(include, exclude), "text/plain": repr(self)}


def halves(facts: Facts, *, seed: int) -> tuple[Facts, Facts]:
    """Deal facts into two halves, all facts of one subject into the same.

    Facts that are all about one subject are dealt one by one.

    Args:
        facts: what is dealt; of an odd number of subjects, the second half gets one more.
        seed: of the deal.

    Example:
        >>> first, second = halves(Facts([Fact(f"{n} plays", n, "golf") for n in "ABCD"]), seed=0)
        >>> len(first), len(second), {f.subject for f in first} & {f.subject for f in second}
        (2, 2, set())
    """
    several = len({fact.subject for fact in facts}) > 1

    def key(fact: Fact) -> str:
        return fact.subject if several else fact.prompt

    unique = sorted({key(fact) for fact in facts})
    chosen = set(random.Random(seed).sample(unique, len(unique) // 2))
    return facts.where(lambda fact: key(fact) in chosen), facts.where(lambda fact: key(fact) not in chosen)


def forget_class(
    hm: HookedModel,
    localization: Localization,
    objective: Objective,
    facts: Facts,
    answer: str,
    *,
    new: str | None = None,
    seed: int = 0,
    **options: Any,
) -> ClassResult:
    """Fit an edit on half of the members of a class, and score both halves and what was to survive.

    Args:
        hm: the model, which stays as it is.
        localization: where weights may change.
        objective: what to minimise, such as ``objectives.Inject()``.
        facts: members of the class and others. Scored beside the halves is ``facts.maintained`` without the
            members: the test set or, if there is none, the retain set, which was trained on.
        answer: the class: every fact with this answer is a member.
        new: the one new answer of all members; None leaves each fact its own.
        seed: of the deal into halves, the order of examples and the bootstrap.
        **options: as of :func:`~mechunlearn.editing.training.fitting.edit`, such as ``steps`` and ``lr``.

    Raises:
        FactError: fewer than two subjects or facts have the answer, a new answer is missing, or the options
            of a member lack it.
        MechUnlearnError: as :func:`~mechunlearn.editing.training.fitting.edit` raises.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> result = forget_class(hm, hm.sites.mlps(), mu.objectives.Inject(), facts, "hockey", new="golf",
        ...                       steps=2, progress=False)
        >>> len(result.trained), len(result.unseen)
        (14, 15)

    Source: Guo et al., "Mechanistic Unlearning" (2024), full-sport tasks.
    """
    shares.require_facts(facts)
    members = facts.where(lambda fact: fact.answer.strip() == answer.strip())
    _require(members, facts, answer, new, objective)
    trained, unseen = halves(Facts(_member(fact, new) for fact in members), seed=seed)
    rest = facts.where(lambda fact: fact.answer.strip() != answer.strip())
    kept = [fact.replace(split="retain") if fact.split == "forget" else fact for fact in rest]
    given = Facts([*trained, *kept], text=facts.text, name=facts.name)
    fitted = edit(hm, localization, objective, given, seed=seed, **options)
    models = {UNTOUCHED: hm, EDITED: fitted.apply(hm)}
    both = {"answer": shares.answer, "new": shares.new}
    of_members = both if all(fact.new for fact in trained) else {"answer": shares.answer}
    table = [
        *shares.shares(models, trained, TRAINED, of_members, seed=seed),
        *shares.shares(models, unseen, UNSEEN, of_members, seed=seed),
        *shares.shares(models, given.maintained, MAINTAINED, {"answer": shares.answer}, seed=seed),
    ]
    return ClassResult(answer, new, fitted, trained, unseen, tuple(table))


def _member(fact: Fact, new: str | None) -> Fact:
    """A member as it is trained on; what would have followed from another new answer is left behind."""
    if new is None:
        return fact.replace(split="forget")
    return fact.replace(split="forget", new=new, entailed=())


def _require(members: Facts, facts: Facts, answer: str, new: str | None, objective: Objective) -> None:
    """Refuse a class that cannot be halved, or a new answer that is needed and missing."""
    if len(members) < 2:
        common = ", ".join(f"{name!r} ({n})" for name, n in Counter(f.answer for f in facts).most_common(6))
        raise FactError(
            f"the class {answer!r} has {len(members)} of {len(facts)} facts, and needs two, one for each "
            f"half; the most frequent answers are {common or 'none'}"
        )
    bare = [fact.prompt for fact in members if fact.new is None]
    if objective.aim == "new" and new is None and bare:
        raise FactError(
            f"{len(bare)} of {len(members)} members of the class {answer!r} have no new answer, such as "
            f"{bare[0]!r}, and the objective writes one; give new=..., one answer for all of them"
        )
