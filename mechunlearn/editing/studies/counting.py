"""How many facts an edit can hold: the same recipe on more and more facts at once.

1. The forget facts are put in a seeded order, and each count takes the first so many: a larger set holds
   every smaller one.
2. For each count the recipe is fitted anew, with the same options, on the untouched model.
3. Each edit, once it is chosen, is asked the facts it was fitted on in training, validation and held-out
   phrasings, and the maintained facts. Count 0 is the untouched model, asked the largest set.

The number of steps is the recipe's and does not grow with the facts, so a curve that falls says what this
recipe can hold, not what these weights can.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.statistics import Interval
from mechunlearn.core.viz.curves import line_plot
from mechunlearn.editing.edits.history import History
from mechunlearn.editing.objectives.reading import Objective
from mechunlearn.editing.studies import shares
from mechunlearn.editing.studies.shares import EDITED, PHRASINGS, UNTOUCHED, Metric, Share
from mechunlearn.editing.training.fitting import edit
from mechunlearn.errors import FactError, TrainingError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from mechunlearn.models.hooked import HookedModel

FORGET, MAINTAINED, SUCCESS, ANSWER = "forget", "maintained", "success", "answer"
_NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True, eq=False, repr=False)
class CountCurve:
    """Success and what was maintained, by the number of facts edited at once.

    Args:
        tables: the shares that were measured, by count: of the ``"forget"`` facts ``"success"`` (the new
            answer is given or, for objectives that only forget, the old one is not) and ``"answer"`` (the old
            one is), of the ``"maintained"`` facts ``"answer"``. Count 0 is the untouched model.
        histories: the course of each fit, by count.
        title: written above figures.
    """

    tables: Mapping[int, tuple[Share, ...]]
    histories: Mapping[int, History]
    title: str = ""

    @property
    def counts(self) -> tuple[int, ...]:
        """The counts, without 0."""
        return tuple(self.histories)

    def interval(
        self, count: int, facts: str = FORGET, *, phrasing: str = "held_out", metric: str | None = None
    ) -> Interval:
        """One share with its interval.

        Args:
            count: how many facts were edited; 0 for the untouched model.
            facts: ``"forget"`` or ``"maintained"``.
            phrasing: ``"train"``, ``"validation"`` or ``"held_out"``.
            metric: ``"success"`` or ``"answer"``; default success of forget facts, answer of maintained ones.

        Raises:
            FactError: nothing was measured under a name.
        """
        asked = metric or (SUCCESS if facts == FORGET else ANSWER)
        if count not in self.tables:
            raise FactError(f"no edit of {count} facts was fitted; the counts are {self.counts}")
        return shares.pick(self.tables[count], facts=facts, phrasing=phrasing, metric=asked)

    def to_frame(self) -> pd.DataFrame:
        """One share a row: count, model, facts, phrasing, metric, value, low, high, n."""
        import pandas as pd

        frames = [shares.frame(table).assign(count=count) for count, table in self.tables.items()]
        whole = pd.concat(frames, ignore_index=True)
        return whole[["count", *Share._fields]]

    def plot(self) -> go.Figure:
        """Draw success in every kind of phrasing, and the maintained facts, over the count.

        Of the maintained facts the held-out phrasings are drawn, or the last kind that they have.
        """
        curves, bands = {}, {}
        for name, key in self._curves().items():
            # Nothing was to succeed in the untouched model.
            found = [self._at(count, key) if count or key[2] == ANSWER else _NOTHING for count in self.tables]
            curves[name] = [at.mean for at in found]
            bands[name] = ([at.low for at in found], [at.high for at in found])
        at = [math.log2(count or self.counts[0] / 2) for count in self.tables]
        x = [str(count) for count in self.tables]
        figure = line_plot(curves, x=x, at=at, title=self.title, unit="share of facts", bands=bands)
        figure.update_xaxes(title_text="facts edited at once", title_standoff=8)
        figure.update_yaxes(range=[-0.04, 1.04], tickformat=".1f")
        return figure.update_layout(height=380, legend_y=-0.25)

    def _curves(self) -> dict[str, tuple[str, str, str]]:
        """What is drawn, by its name in the legend."""
        there = {(s.facts, s.phrasing, s.metric) for table in self.tables.values() for s in table}
        wanted = {f"success, {phrasing}": (FORGET, phrasing, SUCCESS) for phrasing in PHRASINGS}
        kept = [key for key in ((MAINTAINED, phrasing, ANSWER) for phrasing in PHRASINGS) if key in there]
        wanted |= {f"{MAINTAINED}, {key[1]}": key for key in kept[-1:]}
        return {name: key for name, key in wanted.items() if key in there}

    def _at(self, count: int, key: tuple[str, str, str]) -> Interval:
        for share in self.tables[count]:
            if (share.facts, share.phrasing, share.metric) == key:
                return share.interval
        return _NOTHING

    def __repr__(self) -> str:
        lines = [f"CountCurve({self.title})"]
        for count in self.tables:
            found = {name: self._at(count, key) for name, key in self._curves().items()}
            lines.append(f"  {count} facts: " + "; ".join(f"{name} {at}" for name, at in found.items()))
        return "\n".join(lines)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {**self.plot()._repr_mimebundle_(include, exclude), "text/plain": repr(self)}


def count_curve(
    hm: HookedModel,
    localization: Localization,
    objective: Objective,
    facts: Facts,
    *,
    counts: Sequence[int] = (8, 16, 32, 64, 128),
    seed: int = 0,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> CountCurve:
    """Fit the same recipe on more and more facts at once, and score each edit.

    Args:
        hm: the model, which stays as it is.
        localization: where weights may change.
        objective: what to minimise, such as ``objectives.Inject()``.
        facts: with as many forget facts as the largest count. Maintained is ``facts.maintained``: the test
            set or, if there is none, the retain set, which was trained on.
        counts: how many facts to edit.
        seed: of the order of the facts, the order of examples and the bootstrap.
        checkpoint: a folder for checkpoints, in which each count has its own; None for none.
        **options: as of :func:`~mechunlearn.editing.training.fitting.edit`, such as ``steps`` and ``lr``.

    Raises:
        FactError: there are fewer forget facts than a count.
        TrainingError: there are no counts, or one is below 1.
        MechUnlearnError: as :func:`~mechunlearn.editing.training.fitting.edit` raises.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> curve = count_curve(hm, hm.sites.mlps(), mu.objectives.Inject(), facts, counts=(2, 4), steps=2,
        ...                     progress=False)
        >>> curve.counts
        (2, 4)

    Source: the scaling experiment of Guo et al., "Mechanistic Unlearning" (2024).
    """
    shares.require_facts(facts)
    _require(counts, facts)
    asked = sorted(set(counts))
    chosen = random.Random(seed).sample(list(facts.forget), asked[-1])
    counted = {SUCCESS: shares.success(objective.aim), ANSWER: shares.answer}
    tables = {0: _ask(hm, UNTOUCHED, Facts(chosen), facts.maintained, counted, seed=seed)}
    histories = {}
    for count in asked:
        forget = Facts(chosen[:count])
        given = Facts([*forget, *facts.retain, *facts.test], text=facts.text, name=facts.name)
        saved = None if checkpoint is None else Path(checkpoint) / f"{count}_facts"
        fitted = edit(hm, localization, objective, given, seed=seed, checkpoint=saved, **options)
        histories[count] = History(fitted.history, step=fitted.step, title=f"{count} facts edited at once")
        tables[count] = _ask(fitted.apply(hm), EDITED, forget, facts.maintained, counted, seed=seed)
    return CountCurve(tables, histories, f"{objective} at {localization}")


def _ask(
    hm: HookedModel,
    model: str,
    forget: Facts,
    maintained: Facts,
    counted: Mapping[str, Metric],
    *,
    seed: int,
) -> tuple[Share, ...]:
    """What one model says to the edited and to the maintained facts."""
    models = {model: hm}
    kept = {ANSWER: shares.answer}
    return (
        *shares.shares(models, forget, FORGET, counted, seed=seed),
        *shares.shares(models, maintained, MAINTAINED, kept, seed=seed),
    )


def _require(counts: Sequence[int], facts: Facts) -> None:
    listed = list(counts) if isinstance(counts, Iterable) else []
    if not listed or not all(isinstance(count, Integral) and count >= 1 for count in listed):
        raise TrainingError(
            f"counts are {counts!r}; give at least one whole number of facts, each 1 or more, such as [8, 16]"
        )
    if max(counts) > len(facts.forget):
        fitting = tuple(count for count in counts if count <= len(facts.forget))
        raise FactError(
            f"counts asks for {max(counts)} facts and the forget set has {len(facts.forget)}; "
            f"give more forget facts, or counts={fitting or (len(facts.forget),)}"
        )
