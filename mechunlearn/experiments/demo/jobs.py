"""The demo's edits and exams, each a job that needs nothing but its own description.

Jobs run side by side in processes of one thread each: on two cores that is faster than one process with
two threads, and it makes every job's numbers independent of how many run.

1. A model (original, gold, or the original edited somewhere) takes the exam of its draw.
2. Every edit has the same recipe. Its learning rate is the lowest of :data:`RATES` with which the goal on
   validation phrasings is reached, or, if none reaches it, the one that comes closest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from mechunlearn import world
from mechunlearn.auditing.attacks.relearning import Relearn
from mechunlearn.auditing.evaluation import Exam
from mechunlearn.auditing.report.estimates import Row
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Recipe, Stop
from mechunlearn.editing.objectives.likelihood import Inject
from mechunlearn.editing.training.fitting import refit
from mechunlearn.experiments.demo.looking import Look, look
from mechunlearn.models.hooked import HookedModel
from mechunlearn.world.people import GROUPS

RATES = (1e-3, 3e-3)
STEPS = 120
STOP = Stop()


@dataclass(frozen=True)
class Job:
    """One row of the table to be made: a draw, a name, and where to edit; no sites, no edit."""

    draw: int
    name: str
    sites: tuple[str, ...] = ()
    checkpoint: Literal["original", "gold"] = "original"

    @property
    def key(self) -> tuple[object, ...]:
        """What the result depends on: two jobs with one key differ in name only."""
        return self.draw, self.sites, self.checkpoint


@dataclass(frozen=True)
class Done:
    """What a job found: the exam's rows, and how the edit was fitted."""

    job: Job
    rows: tuple[Row, ...]
    lr: float = 0.0
    steps: int = 0
    success: float = 0.0
    retention: float = 0.0
    size: int = 0


def group_of(draw: int) -> int:
    """The forget group of a draw; seeds are the draw's number."""
    return draw % GROUPS


@lru_cache(maxsize=2)
def _model(checkpoint: Literal["original", "gold"]) -> HookedModel:
    return world.model(checkpoint)


@lru_cache(maxsize=1)
def _facts(draw: int) -> Facts:
    return world.facts(group=group_of(draw))


@lru_cache(maxsize=1)
def _exam(draw: int) -> Exam:
    return Exam.of(_model("original"), _facts(draw), (Relearn(),), seed=draw)


def seen(draw: int) -> Look:
    """Look at the embedded model with one draw's facts.

    Args:
        draw: its number.
    """
    return look(_model("original"), _facts(draw), seed=draw)


def done(job: Job) -> Done:
    """Fit the job's edit, if it has one, and take the exam.

    Args:
        job: what to do.
    """
    hm = _model(job.checkpoint)
    fitted = None
    if job.sites:
        fitted = fit(hm, Localization(job.sites), _facts(job.draw), seed=job.draw)
        hm = fitted.apply(hm)
    rows = _exam(job.draw).take(hm, job.name)
    if fitted is None or fitted.recipe is None:
        return Done(job, rows)
    size = hm.size(fitted.localization)
    return Done(job, rows, fitted.recipe.lr, fitted.step, **_kept(fitted), size=size)


def fit(hm: HookedModel, localization: Localization, facts: Facts, *, seed: int) -> Edit:
    """Write the new sports at a localization, with the learning rate chosen by the rule.

    Args:
        hm: the embedded model.
        localization: where.
        facts: one group's facts.
        seed: of the order of examples.
    """
    tried: list[Edit] = []
    for lr in RATES:
        recipe = Recipe(Inject(), steps=STEPS, lr=lr, seed=seed, stop=STOP)
        tried.append(refit(hm, recipe, localization, facts))
        if STOP.reached(**_kept(tried[-1])):
            return tried[-1]
    return max(tried, key=lambda edit: STOP.value(**_kept(edit)))


def _kept(edit: Edit) -> dict[str, float]:
    """Success and retention at the step that was kept."""
    entry = edit.history[edit.step - 1]
    return {name: entry[name] for name in ("success", "retention")}


class Pool:
    """Processes of one thread each, for looks and jobs."""

    def __init__(self, *, workers: int) -> None:
        import multiprocessing

        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_one_thread)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def looks(self, draws: Sequence[int]) -> list[Look]:
        """Look, for every draw.

        Args:
            draws: their numbers.
        """
        return list(self._pool.map(seen, draws))

    def all(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do jobs, yielding each as it is done.

        Args:
            jobs: in the order in which to start them.
        """
        for future in as_completed([self._pool.submit(done, job) for job in jobs]):
            yield future.result()


def _one_thread() -> None:
    import os

    import torch

    torch.set_num_threads(1)
    # Progress bars of several processes would write over one another.
    os.environ["TQDM_DISABLE"] = "1"
