"""How many facts an edit can hold: the same recipe on more and more facts at once.

1. Shuffle the forget facts once; each count takes the first of them, so a larger set contains every smaller.
2. For each count, fit the recipe from the untouched model, with the same options.
3. Once an edit is chosen, ask the facts it was fitted on in training, validation and held-out phrasings, and
   the maintained facts. Count 0 is the untouched model, asked the largest set.

The number of steps does not grow with the number of facts. A curve that falls therefore shows the limit of
this recipe, not of these weights.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechunlearn.core.estimates import EDITED, UNTOUCHED
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.kinds import in_words
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.statistics import Interval
from mechunlearn.core.viz.curves import line_plot
from mechunlearn.editing.edits.history import History
from mechunlearn.editing.objectives.requests import Objective
from mechunlearn.editing.studies import shares
from mechunlearn.editing.studies.shares import PHRASINGS, Metric, Share
from mechunlearn.editing.training.fitting import edit
from mechunlearn.errors import FactError, TrainingError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from mechunlearn.models.hooked import HookedModel

FORGET, MAINTAINED, SUCCESS, ANSWER = "forget", "maintained", "success", "answer"
_UNDEFINED = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True, eq=False, repr=False)
class CountCurve:
    """Success and maintained facts, by the number of facts edited at once.

    Args:
        tables: shares by count: of the ``"forget"`` facts ``"success"`` (the model gives the new answer or,
            for objectives that only forget, not the old one) and ``"answer"`` (it gives the old one), of the
            ``"maintained"`` facts ``"answer"``. Count 0 is the untouched model.
        histories: history of each fit, by count.
        title: title of figures.
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
        """Return one share with its interval.

        Args:
            count: number of facts edited at once; 0 for the untouched model.
            facts: ``"forget"`` or ``"maintained"``.
            phrasing: ``"train"``, ``"validation"`` or ``"held_out"``.
            metric: ``"success"`` or ``"answer"``; default success of forget facts, answer of maintained ones.

        Raises:
            FactError: there is no such share.
        """
        counted = metric or (SUCCESS if facts == FORGET else ANSWER)
        if count not in self.tables:
            raise FactError(f"no edit of {count} facts was fitted; the counts are {self.counts}")
        return shares.pick(self.tables[count], facts=facts, phrasing=phrasing, metric=counted)

    def to_frame(self) -> pd.DataFrame:
        """One share a row: count, model, facts, phrasing, metric, value, low, high, n."""
        import pandas as pd

        frames = [shares.frame(table).assign(count=count) for count, table in self.tables.items()]
        return pd.concat(frames, ignore_index=True)[["count", *Share._fields]]

    def plot(self) -> go.Figure:
        """Draw success in every kind of phrasing, and the maintained facts, against the count.

        The maintained facts are drawn in held-out phrasings, or else in the last kind that they have.
        """
        curves, bands = {}, {}
        for name, key in self._curves().items():
            # The untouched model has no success to show.
            shown = [self._at(n, key) if n or key[2] == ANSWER else _UNDEFINED for n in self.tables]
            curves[name] = [interval.mean for interval in shown]
            bands[name] = ([interval.low for interval in shown], [interval.high for interval in shown])
        # On a scale of doublings, the untouched model stands one doubling before the first count.
        at = [math.log2(count or self.counts[0] / 2) for count in self.tables]
        x = [str(count) for count in self.tables]
        figure = line_plot(curves, x=x, at=at, title=self.title, unit="share of facts", bands=bands)
        figure.update_xaxes(title_text="facts edited at once", title_standoff=8)
        figure.update_yaxes(range=[-0.04, 1.04], tickformat=".1f")
        return figure.update_layout(height=380, legend_y=-0.25)

    def _curves(self) -> dict[str, tuple[str, str, str]]:
        """Facts, phrasing and metric of every curve, by its name in the legend."""
        measured = {(s.facts, s.phrasing, s.metric) for table in self.tables.values() for s in table}
        keys = [(FORGET, phrasing, SUCCESS) for phrasing in PHRASINGS]
        keys += [key for p in PHRASINGS if (key := (MAINTAINED, p, ANSWER)) in measured][-1:]
        names = {key: SUCCESS if key[0] == FORGET else MAINTAINED for key in keys}
        return {f"{name}, {in_words(key[1])}": key for key, name in names.items() if key in measured}

    def _at(self, count: int, key: tuple[str, str, str]) -> Interval:
        for share in self.tables[count]:
            if (share.facts, share.phrasing, share.metric) == key:
                return share.interval
        return _UNDEFINED

    def __repr__(self) -> str:
        lines = [f"CountCurve({self.title})"]
        for count in self.tables:
            shares = [f"{name} {self._at(count, key)}" for name, key in self._curves().items()]
            lines.append(f"  {count} facts: {'; '.join(shares)}")
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
        localization: the weights that may change.
        objective: the objective to minimise, such as ``objectives.Inject()``.
        facts: at least as many forget facts as the largest count, and ``facts.maintained``: the test set or,
            if there is none, the retain set, which was trained on.
        counts: numbers of facts to edit at once.
        seed: seed of the order of the facts, the order of examples and the bootstrap.
        checkpoint: folder of the checkpoints, with one folder per count; None for no checkpoints.
        **options: options of :func:`~mechunlearn.editing.training.fitting.edit`, such as ``steps`` and
            ``lr``.

    Raises:
        FactError: there are fewer forget facts than a count.
        TrainingError: there are no counts, or one is below 1.
        MechUnlearnError: as :func:`~mechunlearn.editing.training.fitting.edit` raises.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> few = mu.Facts([*facts.forget[:2], *facts.retain[:1], *facts.test[:1]], text=facts.text[:2])
        >>> curve = count_curve(hm, hm.sites.mlps(), mu.objectives.Inject(), few, counts=(1, 2), steps=1,
        ...                     stop=None, progress=False)
        >>> curve.counts
        (1, 2)

    Source: the scaling experiment of Guo et al., "Mechanistic Unlearning" (2024).
    """
    shares.require_facts(facts)
    _require(counts, facts)
    rising = sorted(set(counts))
    shuffled = random.Random(seed).sample(list(facts.forget), rising[-1])
    metrics = {SUCCESS: shares.success(objective.aim), ANSWER: shares.answer}
    tables = {0: _shares(hm, UNTOUCHED, Facts(shuffled), facts.maintained, metrics, seed=seed)}
    histories = {}
    for count in rising:
        forget = Facts(shuffled[:count])
        training = Facts([*forget, *facts.retain, *facts.test], text=facts.text, name=facts.name)
        folder = None if checkpoint is None else Path(checkpoint) / f"{count}_facts"
        fitted = edit(hm, localization, objective, training, seed=seed, checkpoint=folder, **options)
        histories[count] = History(fitted.history, step=fitted.step, title=f"{count} facts edited at once")
        tables[count] = _shares(fitted.apply(hm), EDITED, forget, facts.maintained, metrics, seed=seed)
    return CountCurve(tables, histories, f"{objective} at {localization}")


def _shares(
    hm: HookedModel,
    model: str,
    forget: Facts,
    maintained: Facts,
    metrics: Mapping[str, Metric],
    *,
    seed: int,
) -> tuple[Share, ...]:
    """The shares of one model, of the edited and the maintained facts."""
    return (
        *shares.shares({model: hm}, forget, FORGET, metrics, seed=seed),
        *shares.shares({model: hm}, maintained, MAINTAINED, {ANSWER: shares.answer}, seed=seed),
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
