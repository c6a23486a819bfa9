"""How small an edit can be: what it achieves with only some of its weights.

1. Rank the weights of an edit, and use only the first of them, as many as each count says. For any edit, keep
   the largest deltas and drop the others (``"kept"``). For an edit that masks weights, whose deltas are
   (m - 1) * W with m from 0 to 1, set the weights with the smallest masks to zero and leave all others as
   they were (``"zeroed"``).
2. Ask each of these models the forget facts and the maintained facts, and measure its loss on text that no
   edit trains on. Outcomes are averaged within a fact over its phrasings, so that a fact counts once.
3. Report the share of the used weights that lies in two sets of components: those that look facts up, and
   those that carry the answer to the output.

Source: Guo et al., "Mechanistic Unlearning" (2024), on the size of an edit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.core import metrics
from mechunlearn.core.estimates import fact_means
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.kinds import Phrasing
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.statistics import bootstrap_interval
from mechunlearn.core.viz.curves import line_plot
from mechunlearn.editing.edits import algebra, base_model
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.objectives.requests import Masking
from mechunlearn.errors import EditError, FactError, one_of
from mechunlearn.models.encoding.batch import IGNORED, Batch
from mechunlearn.models.encoding.encoder import encode_text
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.scoring.passes import forward
from mechunlearn.models.scoring.scorer import Prepared, prepare, score

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

By = Literal["kept", "zeroed"]
HALVINGS = 8
_SLACK = 1e-3  # rounding of the deltas may bring a mask this far below 0 or above 1


@dataclass(frozen=True, eq=False, repr=False)
class SizeCurve:
    """What an edit achieves against the number of its weights that are used; shows itself in Jupyter.

    Args:
        by: whether the largest deltas were ``"kept"`` or the smallest masks ``"zeroed"``.
        counts: the requested numbers of weights.
        weights: the numbers of weights used: fewer, where the edit has no more.
        values: by measure, a number for each count and each fact or text. ``"old answer"``: share of
            phrasings of a forget fact that get its old answer; ``"new answer"``: its new one;
            ``"maintained"``: share of phrasings of a maintained fact that get its answer; ``"text"``: share
            of next tokens that the model ranks first; ``"text loss"``: mean negative log-likelihood per
            token, in nats.
        shares: by set of components, the share of the used weights that lies in it; NaN for no weights.
        phrasing: kind of phrasing in which the facts were asked.
        title: title of the figure.
    """

    by: By
    counts: tuple[int, ...]
    weights: tuple[int, ...]
    values: Mapping[str, Float[np.ndarray, "count unit"]]
    shares: Mapping[str, Float[np.ndarray, " count"]]
    phrasing: Phrasing
    title: str = ""

    def to_frame(self, *, seed: int = 0) -> pd.DataFrame:
        """One row for every count and measure, with its mean, the mean's 95 % interval and the facts behind.

        Args:
            seed: seed of the bootstrap over facts, which resamples the same facts at every count.

        Returns:
            The columns ``measure, count, weights, mean, low, high, n``; a share of the used weights
            (``"in lookup"``) has no interval.
        """
        import pandas as pd

        rows = []
        for name, table in self.values.items():
            for count, used, units in zip(self.counts, self.weights, table, strict=True):
                mean = bootstrap_interval(units, seed=seed)
                rows.append((name, count, used, mean.mean, mean.low, mean.high, len(units)))
        for name, line in self.shares.items():
            for count, used, share in zip(self.counts, self.weights, line, strict=True):
                rows.append((f"in {name}", count, used, float(share), np.nan, np.nan, used))
        return pd.DataFrame(rows, columns=["measure", "count", "weights", "mean", "low", "high", "n"])

    def plot(self) -> go.Figure:
        """Draw every share against the number of weights, with its interval."""
        frame = self.to_frame()
        curves, bands = {}, {}
        for name, rows in frame[frame["measure"] != "text loss"].groupby("measure", sort=False):
            curves[str(name)] = rows["mean"].to_numpy()
            bands[str(name)] = rows["low"].to_numpy(), rows["high"].to_numpy()
        labels = [f"{count:,}" for count in self.counts]
        figure = line_plot(curves, x=labels, bands=bands, title=self.title, unit="share")
        figure.update_xaxes(title_text=f"weights {self.by}", title_standoff=6)
        figure.update_layout(legend_y=-0.32)
        return figure

    def __repr__(self) -> str:
        measures = ", ".join([*self.values, *(f"in {name}" for name in self.shares)])
        largest = max(self.counts, default=0)
        return f"SizeCurve({len(self.counts)} counts up to {largest:,} weights {self.by}; {measures})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {**self.plot()._repr_mimebundle_(include, exclude), "text/plain": repr(self)}


def edit_size_curve(
    hm: HookedModel,
    edit: Edit,
    facts: Facts,
    *,
    counts: Sequence[int] | None = None,
    by: By | None = None,
    lookup: Localization | None = None,
    extraction: Localization | None = None,
    phrasing: Phrasing = "validation",
    progress: bool = True,
) -> SizeCurve:
    """Measure what an edit achieves with only some of its weights.

    Args:
        hm: the model that the edit was made on, which stays as it is.
        edit: the edit; with ``by="zeroed"``, one that masks weights.
        facts: a forget set and, if there are any, maintained facts and text.
        counts: numbers of weights to use; default none, all, and all halved again and again.
        by: ``"kept"`` for the largest deltas, ``"zeroed"`` for the smallest masks; default the latter where
            the edit's objective trains masks.
        lookup: the components that look facts up; the share of the used weights in them is reported.
        extraction: the components that carry the answer to the output; their share is reported, too.
        phrasing: kind of phrasing in which facts are asked; facts without it are asked in training phrasings.
            Choose a size on ``"validation"``, and report it on ``"held_out"``.
        progress: whether to show a progress bar.

    Raises:
        EditError: the edit does not fit the model or is no mask, or an option is out of range.
        FactError: the forget set is empty, or there is no such kind of phrasing.
        SiteError: a site of ``lookup`` or ``extraction`` is not of this model.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> few = mu.Facts([*facts.forget[:2], *facts.retain[:2]], text=facts.text[:2])
        >>> e = mu.edit(hm, hm.sites.mlps(), mu.objectives.Inject(), few, steps=1, stop=None, progress=False)
        >>> curve = edit_size_curve(hm, e, few, counts=[0, 100], progress=False)
        >>> curve.weights, list(curve.values)
        ((0, 100), ['old answer', 'new answer', 'maintained', 'text', 'text loss'])

    Source: Guo et al., "Mechanistic Unlearning" (2024), on the size of an edit.
    """
    from tqdm.auto import tqdm

    facts.require("forget")
    if phrasing not in get_args(Phrasing):
        raise FactError(one_of("phrasing", phrasing, get_args(Phrasing)))
    how = _how(edit, by)
    algebra.require_fit(edit.shapes, hm.params)
    base_model.warn_of_another(hm, edit.made_on, stacklevel=2)
    ranked = _ranked(hm, edit, how)
    steps = _counts(counts, ranked.total)
    exam = _Exam.of(hm, facts, phrasing)
    components = (("lookup", lookup), ("extraction", extraction))
    slices = {name: hm.slices(sites) for name, sites in components if sites is not None}
    answers, shares, weights = [], [], []
    for count in tqdm(steps, desc="edit size", disable=not progress, leave=False):
        deltas = ranked.first(count)
        answers.append(exam.take(hm.fork(algebra.added(deltas, hm.params))))
        used = _nonzero(deltas)
        inside = {name: _nonzero(algebra.restricted(deltas, parts)) for name, parts in slices.items()}
        shares.append({name: number / used if used else np.nan for name, number in inside.items()})
        weights.append(used)
    return SizeCurve(
        by=how,
        counts=steps,
        weights=tuple(weights),
        values={name: np.stack([answer[name] for answer in answers]) for name in answers[0]},
        shares={name: np.array([share[name] for share in shares]) for name in slices},
        phrasing=phrasing,
        title=f"What the edit achieves with so many of its weights {how}",
    )


def _how(edit: Edit, by: By | None) -> By:
    if by is not None and by not in get_args(By):
        raise EditError(one_of("by", by, get_args(By)))
    trained = edit.recipe is not None and isinstance(edit.recipe.objective, Masking)
    return by or ("zeroed" if trained else "kept")


def _counts(counts: Sequence[int] | None, total: int) -> tuple[int, ...]:
    if counts is None:
        return tuple(sorted({0, *(total >> halved for halved in range(HALVINGS + 1))}))
    listed = list(counts) if isinstance(counts, Iterable) else []
    if not listed or not all(isinstance(count, Integral) and count >= 0 for count in listed):
        raise EditError(f"counts are {counts!r}; give whole numbers of weights, 0 or more, such as [0, 1000]")
    return tuple(sorted(set(listed)))


def _ranked(hm: HookedModel, edit: Edit, by: By) -> algebra.Ranked:
    """Rank the weights of an edit in the order in which they are used."""
    deltas = algebra.merged(edit.deltas, edit.shapes)
    if by == "kept":
        return algebra.by_size(deltas)
    removed, zeroing = [], []
    for delta in deltas:
        weights = delta.slice.of(hm.params[delta.slice.name].detach()).to(delta.values)
        # A mask turns W into m W, so the share 1 - m that it takes away is -delta / W; 0 where delta is 0.
        share = torch.where(delta.values == 0, 0.0, -delta.values / weights)
        # Negated, so that not-a-numbers are among them.
        odd = ~((share >= -_SLACK) & (share <= 1 + _SLACK))
        if bool(odd.any()):
            raise EditError(
                f"the edit is no mask of this model's weights: in {delta.slice.name!r} it makes "
                f"{float(weights[odd][0]):.4g} into {float((weights + delta.values)[odd][0]):.4g}, which is "
                "not between that and 0; fit one with a WeightMask objective, or rank deltas with by='kept'"
            )
        removed.append(share.clamp(0, 1))
        zeroing.append(-weights)
    return algebra.Ranked(tuple(delta.slice for delta in deltas), tuple(removed), tuple(zeroing))


def _nonzero(deltas: Sequence[algebra.Delta]) -> int:
    return sum(int(delta.values.count_nonzero()) for delta in deltas)


@dataclass(frozen=True)
class _Questions:
    """Encoded questions about some facts; ``rows`` holds the number of the fact that each is about."""

    prepared: Prepared
    rows: tuple[int, ...]

    @classmethod
    def of(cls, hm: HookedModel, facts: Sequence[Fact], phrasing: Phrasing) -> _Questions:
        pairs = [
            (row, question)
            for row, fact in enumerate(facts)
            for question in fact.phrasings(phrasing) or fact.phrasings("train")
        ]
        return cls(prepare(hm, [question for _, question in pairs]), tuple(row for row, _ in pairs))

    def per_fact(self, outcomes: Bool[np.ndarray, " question"]) -> Float[np.ndarray, " fact"]:
        return np.array(list(fact_means(zip(self.rows, outcomes.tolist(), strict=True)).values()))


@dataclass(frozen=True)
class _Exam:
    """The questions and the text for every model."""

    forget: _Questions
    has_new: Bool[np.ndarray, " fact"]
    maintained: _Questions
    text: Batch | None

    @classmethod
    def of(cls, hm: HookedModel, facts: Facts, phrasing: Phrasing) -> _Exam:
        forget, maintained = (
            _Questions.of(hm, split, phrasing) for split in (facts.forget, facts.maintained)
        )
        text = encode_text(hm, facts.test_text) if facts.test_text else None
        return cls(forget, np.array([fact.new is not None for fact in facts.forget]), maintained, text)

    def take(self, hm: HookedModel) -> dict[str, Float[np.ndarray, " unit"]]:
        """Measure one model; a measure without facts or text is left out."""
        outcome = score(hm, self.forget.prepared)
        measures = {"old answer": self.forget.per_fact(outcome.correct)}
        if self.has_new.any():
            measures["new answer"] = self.forget.per_fact(outcome.says_new)[self.has_new]
        if self.maintained.rows:
            measures["maintained"] = self.maintained.per_fact(score(hm, self.maintained.prepared).correct)
        if self.text is not None:
            tokens = (self.text.labels != IGNORED).sum(1, keepdim=True)
            hits, losses = (forward(hm, self.text, read=_hits_and_losses) / tokens).double().cpu().numpy().T
            measures |= {"text": hits, "text loss": losses}
        return measures


def _hits_and_losses(
    logits: Float[Tensor, "batch answer d_vocab"], ids: Int[Tensor, "batch answer"]
) -> Float[Tensor, "batch 2"]:
    """Number of tokens of each text that the model ranks first, and the sum of all tokens' losses."""
    losses = -metrics.answer_logprob(logits, ids)
    return torch.stack([(logits.argmax(-1) == ids).sum(-1).to(losses), losses], dim=-1)
