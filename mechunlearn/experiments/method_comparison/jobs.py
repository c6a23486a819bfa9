"""Make cells: choose, fit and examine one method at one place.

1. A job holds all that its cell depends on, so that its fingerprint tells whether a stored cell is it.
2. The candidate is chosen on validation phrasings. Its edit is examined once, on held-out phrasings, as
   multiple choice, and by what should follow or stay; outcomes are averaged within a person.
3. Jobs run side by side in processes of one thread each, or one after the other in this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from mechunlearn import world
from mechunlearn.auditing.evaluation import Exam
from mechunlearn.auditing.sections import Question
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Recipe
from mechunlearn.errors import TrainingError
from mechunlearn.experiments.demo.jobs import Done, group_of
from mechunlearn.experiments.demo.jobs import Job as DemoJob
from mechunlearn.experiments.demo.table import cells
from mechunlearn.experiments.method_comparison.catalogue import STOP
from mechunlearn.experiments.method_comparison.cells import Cell
from mechunlearn.experiments.method_comparison.choosing import Choice, choose
from mechunlearn.experiments.method_comparison.closed import Solve, choose_solved
from mechunlearn.experiments.method_comparison.table import COLUMNS, RETAIN
from mechunlearn.models.hooked import HookedModel

NOWHERE = "not applicable: holds no whole mlp.out in the lower half of the blocks"


@dataclass(frozen=True)
class Job:
    """One cell to be made.

    Args:
        method: its name.
        place: the name of the localization; empty for a model that is examined as it is.
        sites: the localization.
        candidates: what the method chooses from; nothing where it is not applicable.
        seed: of questions and probes; it decides the group of people too.
        checkpoint: the model to begin with.
    """

    method: str
    place: str = ""
    sites: tuple[str, ...] = ()
    candidates: tuple[Recipe, ...] | tuple[Solve, ...] = ()
    seed: int = 0
    checkpoint: Literal["original", "gold"] = "original"

    @property
    def key(self) -> str:
        """A fingerprint of all that the cell depends on, but for the code."""
        identity = model(self.checkpoint).identity
        return hashlib.sha256(repr((self, identity, list(COLUMNS.values()))).encode()).hexdigest()[:16]

    @property
    def file(self) -> str:
        """The name of the file that keeps the cell.

        Example:
            >>> Job("DPO (refusal)", "fact lookup").file
            'DPO-refusal--fact-lookup.json'
        """
        return "--".join(_dashed(name) for name in (self.method, self.place) if name) + ".json"


@lru_cache(maxsize=2)
def model(checkpoint: Literal["original", "gold"]) -> HookedModel:
    """An embedded model, loaded once per process.

    Args:
        checkpoint: which.
    """
    return world.model(checkpoint)


@lru_cache(maxsize=1)
def facts_of(seed: int) -> Facts:
    """The facts of the group that a seed stands for.

    Args:
        seed: as in the demo, where draws have numbers.
    """
    return world.facts(group=group_of(seed))


def done(job: Job) -> Cell:
    """Choose, fit and examine; or only examine, where there is nothing to fit.

    Args:
        job: what to do.
    """
    hm, facts = model(job.checkpoint), facts_of(job.seed)
    if not job.place:
        return Cell(job.method, values=_examined(hm, job.seed))
    if not job.candidates:
        return Cell(job.method, job.place, note=NOWHERE)
    place = Localization(job.sites)
    try:
        choice = _chosen(hm, place, job.candidates, facts)
    except TrainingError as error:
        return Cell(job.method, job.place, note=f"could not be fitted: {error}")
    recipe = choice.recipe
    return Cell(
        job.method,
        job.place,
        _examined(choice.edit.apply(hm), job.seed),
        chosen=choice.chosen,
        tried=choice.tried,
        aim=recipe.objective.aim if recipe is not None else "new",
        size=hm.size(choice.edit.localization),
        changed=changed(choice.edit),
    )


def changed(edit: Edit) -> int:
    """How many weights an edit changes.

    Args:
        edit: whose slices do not overlap.

    Example:
        >>> changed(mu.Edit((), mu.Localization()))
        0
    """
    return sum(int(delta.values.count_nonzero()) for delta in edit.deltas)


def all_done(jobs: Sequence[Job], *, workers: int) -> Iterator[tuple[Job, Cell]]:
    """Do jobs, giving each as it is done.

    Args:
        jobs: in the order in which to start them.
        workers: processes; with one, all is done in this process.
    """
    if workers == 1:
        yield from ((job, done(job)) for job in jobs)
        return
    import multiprocessing

    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_one_thread)
    try:
        started = {pool.submit(done, job): job for job in jobs}
        for future in as_completed(started):
            yield started[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chosen(
    hm: HookedModel, place: Localization, candidates: Sequence[Recipe] | Sequence[Solve], facts: Facts
) -> Choice:
    recipes = [each for each in candidates if isinstance(each, Recipe)]
    if recipes:
        return choose(hm, place, recipes, facts)
    return choose_solved(hm, [each for each in candidates if isinstance(each, Solve)], facts, stop=STOP)


@lru_cache(maxsize=1)
def _exam(seed: int) -> Exam:
    """The demo's questions without its attacks and probes, and the retain set in held-out phrasings."""
    facts = facts_of(seed)
    exam = Exam.of(model("original"), facts, (), seed=seed)
    kept = tuple(
        Question(RETAIN, "held_out", fact.prompt, ask.replace(entailed=(), others=(), neighbours={}))
        for fact in facts.retain
        for ask in fact.phrasings("held_out")
    )
    return replace(exam, questions=exam.questions + kept, readers=())


def _examined(hm: HookedModel, seed: int) -> Mapping[str, Mapping[str, float]]:
    """A value per person, by column."""
    told = [Done(DemoJob(0, ""), _exam(seed).take(hm, ""))]
    return {
        name: {person: value for (_, person), value in cells(told, column).items()}
        for name, column in COLUMNS.items()
    }


def _dashed(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


def _one_thread() -> None:
    import os

    import torch

    torch.set_num_threads(1)
    # Progress bars of several processes would write over one another.
    os.environ["TQDM_DISABLE"] = "1"
