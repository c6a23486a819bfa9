"""The closed forms beside the trained methods: which matrices they may write into, and how they choose.

1. They can write into the matrix out of an MLP, whole. Of a localization they take those that it holds, and
   only in the lower half of the blocks, as published (GPT-J: 5, and 3 to 8, of 28), since what is written
   after the name has been read is not read any more.
2. ROME writes one fact into one matrix: the facts one after the other, all into the same. It tries the
   lowest, the middle and the highest of its matrices. MEMIT and AlphaEdit write all facts into all of them.
3. What running text counts beside the facts depends on the size of a model's keys, so the published numbers
   mean nothing here. MEMIT tries three weights; AlphaEdit three bounds for the directions it may use.
4. The running text is what trained methods are given to keep: general text, and the retain set's training
   phrasings with their answers. Prefixes are the first words of some of it.
5. They choose as trained methods do: by ``Stop.value`` on validation phrasings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.editing.closed_form.keys import KeyStatistics, key_statistics
from mechunlearn.editing.closed_form.rank_one import rome
from mechunlearn.editing.closed_form.spreading import memit
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Stop
from mechunlearn.errors import EditError, TrainingError
from mechunlearn.experiments.method_comparison.choosing import Choice, Tried
from mechunlearn.models.scoring.scorer import score

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

WEIGHTS = (1.5, 15.0, 150.0)
BOUNDS = (0.05, 0.5, 5.0)
PREFIXES, WORDS = 5, 10


@dataclass(frozen=True)
class Solve:
    """One candidate of a closed form.

    Args:
        sites: the matrices it writes into.
        weight: how much running text counts; None where that is not its option.
        null_space: below which eigenvalue a direction may be used; None for all directions.
        one_by_one: whether facts are written one after the other.
        seed: of nothing but what the forms draw themselves.
    """

    sites: tuple[str, ...]
    weight: float | None = None
    null_space: float | None = None
    one_by_one: bool = False
    seed: int = 0

    @property
    def words(self) -> str:
        """What sets it apart from the other candidates."""
        if self.one_by_one:
            return f"at {self.sites[0]}"
        if self.null_space is not None:
            return f"directions below {self.null_space:g}"
        return f"text weight {self.weight:g}"


def candidates(method: str, hm: HookedModel, localization: Localization, *, seed: int) -> tuple[Solve, ...]:
    """What a closed form may choose from; nothing where the localization holds no matrix it can write into.

    Args:
        method: ``"ROME"``, ``"MEMIT"`` or ``"AlphaEdit"``.
        hm: the model, which is only read.
        localization: where weights may change.
        seed: passed on.
    """
    sites = tuple(str(site) for site in matrices(hm, localization))
    if not sites:
        return ()
    if method == "ROME":
        spread = dict.fromkeys((sites[0], sites[len(sites) // 2], sites[-1]))
        return tuple(Solve((site,), one_by_one=True, seed=seed) for site in spread)
    if method == "MEMIT":
        return tuple(Solve(sites, weight=weight, seed=seed) for weight in reversed(WEIGHTS))
    return tuple(Solve(sites, null_space=bound, seed=seed) for bound in BOUNDS)


def matrices(hm: HookedModel, localization: Localization) -> tuple[Site, ...]:
    """The ``mlp.out`` in the lower half of the blocks that a localization holds whole.

    Args:
        hm: the model, which is only read.
        localization: where weights may change.

    Example:
        >>> hm = mu.world.model()
        >>> matrices(hm, mu.Localization(["L0.mlp", "L1.mlp.neuron[3]", "L7.mlp"]))
        (Site.parse('L0.mlp.out'),)
    """
    lower = range(hm.sites.shape.n_layers // 2)
    held = [Site.parse(f"L{layer}.mlp.out") for layer in lower]
    return tuple(site for site in held if any(wide in localization for wide in (site, *site.wider)))


def choose_solved(
    hm: HookedModel, solves: Sequence[Solve], facts: Facts, *, stop: Stop, progress: bool = False
) -> Choice:
    """Solve for candidates and keep the best on validation phrasings.

    Args:
        hm: the model, which stays as it is.
        solves: the gentlest first.
        facts: what to write and to validate on.
        stop: what a candidate is worth.
        progress: whether to show bars.

    Raises:
        TrainingError: there is no candidate, or none could be solved.
    """
    if not solves:
        raise TrainingError("there is no candidate; give at least one Solve")
    every = sorted({site for solve in solves for site in solve.sites})
    statistics = key_statistics(hm, Localization(every), kept_texts(facts), progress=progress)
    tried = list[Tried]()
    best: tuple[float, Edit, Tried] | None = None
    for solve in solves:
        try:
            edit = _solved(hm, solve, facts, statistics)
        except (TrainingError, EditError) as error:
            tried.append(Tried(solve.words, failed=str(error)))
            continue
        success, retention = validated(edit.apply(hm), facts)
        tried.append(Tried(solve.words, success, retention))
        if best is None or tried[-1].value(stop) > best[0]:
            best = tried[-1].value(stop), edit, tried[-1]
        if tried[-1].reached(stop):
            break
    if best is None:
        raise TrainingError(f"none of {len(tried)} candidates could be solved; the last: {tried[-1].failed}")
    return Choice(best[1], best[2], tuple(tried))


def kept_texts(facts: Facts) -> tuple[str, ...]:
    """What trained methods are given to keep, as running text.

    Args:
        facts: with a retain set, text, or both.
    """
    told = [f"{ask.prompt} {ask.answer}" for fact in facts.retain for ask in fact.phrasings("train")]
    return (*facts.train_text, *told)


def validated(hm: HookedModel, facts: Facts) -> tuple[float, float]:
    """How often the new answer is given, and the retain set's is, on validation phrasings.

    Args:
        hm: the edited model.
        facts: what is asked.
    """
    forgotten, kept = (
        score(hm, [ask for fact in split for ask in _alone(fact).phrasings("validation")])
        for split in (facts.forget, facts.retain)
    )
    return float(forgotten.says_new.mean()), float(kept.correct.mean())


def _alone(fact: Fact) -> Fact:
    """A fact without those that go with it, which would be scored too."""
    return fact.replace(entailed=(), others=(), neighbours={})


def _solved(hm: HookedModel, solve: Solve, facts: Facts, statistics: KeyStatistics) -> Edit:
    place = Localization(solve.sites)
    prefixes = [" ".join(text.split()[:WORDS]) for text in kept_texts(facts)[:PREFIXES]]
    if solve.one_by_one:
        return _one_by_one(hm, place, facts, statistics, prefixes=prefixes, seed=solve.seed)
    return memit(
        hm,
        place,
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
    place: Localization,
    facts: Facts,
    statistics: KeyStatistics,
    *,
    prefixes: Sequence[str],
    seed: int,
) -> Edit:
    whole, edited = Edit((), place), hm
    for fact in facts.forget:
        # What a matrix reads does not depend on that matrix, so its key statistics stay true.
        still = replace(statistics, made_on=edited.identity)
        edit = rome(
            edited, place, Facts([fact]), statistics=still, prefixes=prefixes, seed=seed, progress=False
        )
        edited, whole = edit.apply(edited), whole + edit
    return replace(whole, localization=place, made_on=hm.identity)
