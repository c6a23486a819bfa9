"""Forget a whole class: train on half of its members, and score the half that was never trained on.

1. The members are all facts with one answer, of any split: a member in the retain set would hold the class
   in place.
2. They are split by subject into two halves. The edit is trained on the first; the second is scored only
   after the edit was chosen.
3. Facts with another answer keep their split, except that those of the forget set are retained: only the
   class is to be forgotten.
4. With a new answer, every member gets the same one.

If the unseen half is forgotten too, the edit cut the class; if not, it cut single facts.

Source: the full-sport tasks of Guo et al., "Mechanistic Unlearning" (2024): all athletes of one sport, split
in halves, answered with golf.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechunlearn.core.estimates import EDITED, UNTOUCHED
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.halving import halves
from mechunlearn.core.facts.kinds import in_words
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.statistics import Interval
from mechunlearn.core.viz.curves import bar_plot
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.objectives.requests import Objective
from mechunlearn.editing.studies import shares
from mechunlearn.editing.studies.shares import Share
from mechunlearn.editing.training.fitting import edit
from mechunlearn.errors import FactError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from mechunlearn.models.hooked import HookedModel

TRAINED, UNSEEN, MAINTAINED = "trained", "unseen", "maintained"


@dataclass(frozen=True, eq=False, repr=False)
class ClassResult:
    """The effect of forgetting a class on both halves of its members and on the maintained facts.

    Args:
        answer: the answer that defines the class.
        new: the new answer of all members; None if each keeps its own, or has none.
        edit: the fitted edit.
        trained: the members that it was fitted on.
        unseen: the other members.
        table: shares of every set of facts, in every kind of phrasing: of the ``"answer"`` and, for members,
            the ``"new"`` answer; untouched, edited and the difference.
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
        """Return one share with its interval.

        Args:
            facts: ``"trained"``, ``"unseen"`` or ``"maintained"``.
            phrasing: ``"train"``, ``"validation"`` or ``"held_out"``.
            metric: ``"answer"`` or ``"new"``.
            model: ``"edited"``, ``"untouched"`` or ``"edited − untouched"``.

        Raises:
            FactError: there is no such share.
        """
        return shares.pick(self.table, facts=facts, phrasing=phrasing, metric=metric, model=model)

    def to_frame(self) -> pd.DataFrame:
        """One share a row: model, facts, phrasing, metric, value, low, high, n."""
        return shares.frame(self.table)

    def plot(self) -> go.Figure:
        """Draw the shares of old and new answers in both halves and in the maintained facts."""
        groups = list(dict.fromkeys((share.facts, share.phrasing) for share in self.table))
        bars = {
            "untouched, old answer": (UNTOUCHED, "answer"),
            "edited, old answer": (EDITED, "answer"),
            "edited, new answer": (EDITED, "new"),
        }
        # Fields 4 to 6 of a share are its value, low and high.
        shares = {(s.facts, s.phrasing, s.model, s.metric): s[4:7] for s in self.table}
        heights, bands = {}, {}
        for name, key in bars.items():
            if any((*group, *key) in shares for group in groups):
                bounds = [shares.get((*group, *key), (np.nan,) * 3) for group in groups]
                value, low, high = np.array(bounds, dtype=float).T
                heights[name], bands[name] = value, (low, high)
        title = f"{self._title}: trained on half of the members"
        x = [f"{facts}, {in_words(phrasing)}" for facts, phrasing in groups]
        figure = bar_plot(heights, x=x, title=title, unit="share of facts", bands=bands)
        figure.update_xaxes(tickvals=list(range(len(x))), ticktext=[text.replace(", ", "<br>") for text in x])
        return figure.update_yaxes(range=[0, 1.05], tickformat=".1f").update_layout(
            height=380, legend_y=-0.22
        )

    @property
    def _title(self) -> str:
        return f"forgetting {self.answer}" if self.new is None else f"{self.answer} to {self.new}"

    def __repr__(self) -> str:
        lines = [
            f"ClassResult({self._title}; {len(self.trained)} members trained on, {len(self.unseen)} unseen)"
        ]
        # Fields 1 to 3 of a share are its facts, phrasing and metric.
        before = {s[1:4]: s.value for s in self.table if s.model == UNTOUCHED}
        for share in (s for s in self.table if s.model == EDITED):
            title = f"{share.facts}, {in_words(share.phrasing)}, {share.metric}"
            lines.append(f"  {title}: {before[share[1:4]]:.2f} -> {share.interval}")
        return "\n".join(lines)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {**self.plot()._repr_mimebundle_(include, exclude), "text/plain": repr(self)}


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
    """Fit an edit on half of the members of a class, and score both halves and the maintained facts.

    Args:
        hm: the model, which stays as it is.
        localization: the weights that may change.
        objective: the objective to minimise, such as ``objectives.Inject()``.
        facts: members of the class and other facts. Beside the halves, ``facts.maintained`` without the
            members is scored: the test set or, if there is none, the retain set, which was trained on.
        answer: the answer that defines the class: every fact with it is a member.
        new: one new answer for all members; None leaves each fact its own.
        seed: seed of the halves, the order of examples and the bootstrap.
        **options: options of :func:`~mechunlearn.editing.training.fitting.edit`, such as ``steps`` and
            ``lr``.

    Raises:
        FactError: fewer than two subjects or facts have the answer, a new answer is missing, or the options
            of a member lack it.
        MechUnlearnError: as :func:`~mechunlearn.editing.training.fitting.edit` raises.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> few = mu.Facts([*facts.forget, *facts.retain[:2], *facts.test[:2]], text=facts.text[:2])
        >>> result = forget_class(hm, hm.sites.mlps(), mu.objectives.Inject(), few, "hockey", new="golf",
        ...                       steps=1, stop=None, progress=False)
        >>> len(result.trained), len(result.unseen)
        (3, 3)

    Source: Guo et al., "Mechanistic Unlearning" (2024), full-sport tasks.
    """
    shares.require_facts(facts)
    members = facts.where(lambda fact: fact.answer.strip() == answer.strip())
    _require(members, facts, answer, new, objective)
    trained, unseen = halves(Facts(_member(fact, new) for fact in members), seed=seed)
    rest = facts.where(lambda fact: fact.answer.strip() != answer.strip())
    retained = [fact.replace(split="retain") if fact.split == "forget" else fact for fact in rest]
    training = Facts([*trained, *retained], text=facts.text, name=facts.name)
    fitted = edit(hm, localization, objective, training, seed=seed, **options)
    models = {UNTOUCHED: hm, EDITED: fitted.apply(hm)}
    both = {"answer": shares.answer, "new": shares.new}
    of_members = both if all(fact.new for fact in trained) else {"answer": shares.answer}
    table = [
        *shares.shares(models, trained, TRAINED, of_members, seed=seed),
        *shares.shares(models, unseen, UNSEEN, of_members, seed=seed),
        *shares.shares(models, training.maintained, MAINTAINED, {"answer": shares.answer}, seed=seed),
    ]
    return ClassResult(answer, new, fitted, trained, unseen, tuple(table))


def _member(fact: Fact, new: str | None) -> Fact:
    """A member as it is trained on, without the facts that followed from its own new answer."""
    if new is None:
        return fact.replace(split="forget")
    return fact.replace(split="forget", new=new, entailed=())


def _require(members: Facts, facts: Facts, answer: str, new: str | None, objective: Objective) -> None:
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
