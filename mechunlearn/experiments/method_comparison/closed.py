"""The closed forms in the comparison: which matrices they may write into, and how they choose.

1. They write into whole output matrices of MLPs. Of a localization they take those that it holds, and only
   in the lower half of the blocks, as published (GPT-J: 5, and 3 to 8, of 28), since the model no longer
   reads what is written after it has read the name.
2. ROME writes one fact into one matrix: the facts one after the other, all into the same. It tries the
   lowest, the middle and the highest of its matrices. MEMIT and AlphaEdit write all facts into all of them.
3. The weight of running text beside the facts depends on the size of a model's keys, so the published numbers
   do not apply here. MEMIT tries three weights; AlphaEdit three bounds for the directions it may use.
4. The running text is what trained methods are to retain: general text, and the retain set's training
   phrasings with their answers. Prefixes are the first words of some of it.
5. They choose as trained methods do: by ``Stop.value`` on validation phrasings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.joining import joined
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.editing.closed_form.keys import KeyStatistics, key_statistics
from mechunlearn.editing.closed_form.mass_editing import memit
from mechunlearn.editing.closed_form.rank_one_edit import rome
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Stop
from mechunlearn.errors import EditError, TrainingError
from mechunlearn.experiments.choosing import Candidate, Choice, Trial, best_of
from mechunlearn.models.scoring.scorer import score

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

WEIGHTS = (1.5, 15.0, 150.0)
BOUNDS = (0.05, 0.5, 5.0)
PREFIXES, WORDS = 5, 10


@dataclass(frozen=True)
class Solve:
    """One candidate of a closed form, which writes into the matrices ``sites``.

    Args:
        weight: weight of running text; None where the form has no such option.
        null_space: eigenvalue below which a direction may be used; None for all directions.
        one_by_one: write facts one after the other.
    """

    sites: tuple[str, ...]
    weight: float | None = None
    null_space: float | None = None
    one_by_one: bool = False
    seed: int = 0

    @property
    def options(self) -> str:
        """What sets it apart from the other candidates, in words."""
        if self.one_by_one:
            return f"at {self.sites[0]}"
        if self.null_space is not None:
            return f"directions below {self.null_space:g}"
        return f"text weight {self.weight:g}"


def candidates(method: str, hm: HookedModel, localization: Localization, *, seed: int) -> tuple[Solve, ...]:
    """List the candidates of ROME, MEMIT or AlphaEdit; none where the localization holds no matrix for it."""
    sites = tuple(str(site) for site in matrices(hm, localization))
    if not sites:
        return ()
    if method == "ROME":
        spread = dict.fromkeys((sites[0], sites[len(sites) // 2], sites[-1]))
        return tuple(Solve((site,), one_by_one=True, seed=seed) for site in spread)
    if method == "MEMIT":
        # The more running text counts, the gentler the edit; for AlphaEdit, the fewer directions it may use.
        return tuple(Solve(sites, weight=weight, seed=seed) for weight in reversed(WEIGHTS))
    return tuple(Solve(sites, null_space=bound, seed=seed) for bound in BOUNDS)


def matrices(hm: HookedModel, localization: Localization) -> tuple[Site, ...]:
    """List the ``mlp.out`` in the lower half of the blocks that a localization holds whole."""
    lower = range(hm.sites.shape.n_layers // 2)
    outputs = [Site.parse(f"L{layer}.mlp.out") for layer in lower]
    return tuple(site for site in outputs if any(wide in localization for wide in (site, *site.wider)))


def choose_solved(
    hm: HookedModel, solves: Sequence[Solve], facts: Facts, *, stop: Stop, progress: bool = False
) -> Choice:
    """Solve for candidates, the gentlest first, and keep the best on validation phrasings.

    ``stop`` is the goal that decides what a candidate is worth. Raises `TrainingError` if there is no
    candidate, or if none could be solved. The model stays as it is.
    """
    if not solves:
        raise TrainingError("there is no candidate; give at least one Solve")
    # One pass over the texts serves all candidates.
    sites = sorted({site for solve in solves for site in solve.sites})
    statistics = key_statistics(hm, Localization(sites), retained_texts(facts), progress=progress)

    def fit(solve: Solve) -> tuple[Edit, Trial]:
        try:
            edit = _solved(hm, solve, facts, statistics)
        except EditError as error:
            raise TrainingError(str(error)) from error
        success, retention = validated(edit.apply(hm), facts)
        return edit, Trial(success=success, retention=retention)

    return best_of([Candidate(solve.options, stop, partial(fit, solve)) for solve in solves])


def retained_texts(facts: Facts) -> tuple[str, ...]:
    """Return what trained methods are to retain, as running text."""
    phrasings = [phrasing for fact in facts.retain for phrasing in fact.phrasings("train")]
    return (
        *facts.train_text,
        *(joined(phrasing.prompt, phrasing.answer, phrasing.join) for phrasing in phrasings),
    )


def validated(hm: HookedModel, facts: Facts) -> tuple[float, float]:
    """Return the share of new answers, and the accuracy on the retain set, on validation phrasings."""
    forgotten, retained = (
        score(hm, [phrasing for fact in split for phrasing in fact.phrasings("validation")])
        for split in (facts.forget, facts.retain)
    )
    return float(forgotten.says_new.mean()), float(retained.correct.mean())


def _solved(hm: HookedModel, solve: Solve, facts: Facts, statistics: KeyStatistics) -> Edit:
    localization = Localization(solve.sites)
    prefixes = [" ".join(text.split()[:WORDS]) for text in retained_texts(facts)[:PREFIXES]]
    if solve.one_by_one:
        return _one_by_one(hm, localization, facts, statistics, prefixes=prefixes, seed=solve.seed)
    return memit(
        hm,
        localization,
        facts,
        statistics=statistics,
        weight=solve.weight,
        null_space=solve.null_space,
        prefixes=prefixes,
        seed=solve.seed,
        progress=False,
    )


def _one_by_one(
    hm: HookedModel,
    localization: Localization,
    facts: Facts,
    statistics: KeyStatistics,
    *,
    prefixes: Sequence[str],
    seed: int,
) -> Edit:
    total, edited = Edit((), localization), hm
    for fact in facts.forget:
        # What a matrix reads does not depend on that matrix, so its key statistics stay valid; `rome` warns
        # of statistics that were made on other weights.
        valid = replace(statistics, made_on=edited.identity)
        edit = rome(
            edited,
            localization,
            Facts([fact]),
            statistics=valid,
            prefixes=prefixes,
            seed=seed,
            progress=False,
        )
        edited, total = edit.apply(edited), total + edit
    # The sum of edits made on successive models applies to the first.
    return replace(total, localization=localization, made_on=hm.identity)
