"""Run the demo: looks, then edits and exams side by side, then table, pictures and findings.

1. For every draw (a forget group and a seed) the model is looked at and the localizations are made.
2. For every draw the untouched and the gold model take the exam, and one edit per localization is fitted
   and takes it; on the first draw also one edit per pair of neighbouring MLPs.
3. The rows are pooled over draws, and the same rows, whatever they say, become the report.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mechunlearn import world
from mechunlearn.auditing.controls import distinct
from mechunlearn.auditing.report.estimates import CONTROL, GOLD
from mechunlearn.auditing.report.report import Report
from mechunlearn.core.estimates import EDITED, UNTOUCHED
from mechunlearn.core.files import write_text
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.experiments.demo import findings, page, table
from mechunlearn.experiments.demo.jobs import RATES, STEPS, STOP, Done, Job, Pool, group_of
from mechunlearn.experiments.demo.looking import EVERYTHING, LOOKUP, RANDOM, TRACED, Look, pairs

if TYPE_CHECKING:
    import plotly.graph_objects as go

QUICK_ROWS = (LOOKUP, TRACED[0], RANDOM, EVERYTHING)
QUICK_PAIRS = ("0+1", "6+7")
PAIR = "MLPs "
CONTROLS = 3


@dataclass(frozen=True)
class Demo:
    """What the demo found; shows itself as a table with its verdict."""

    looks: tuple[Look, ...]
    done: tuple[Done, ...]
    sites: ModelSites
    seconds: float
    cores: int

    @cached_property
    def lines(self) -> Mapping[str, Sequence[Done]]:
        """The jobs of every line of the table."""
        order = ["untouched", "gold", *self.looks[0].localizations]
        found = table.by_name(self.done)
        return {name: found[name] for name in order if name in found}

    @cached_property
    def profile(self) -> Mapping[str, Sequence[Done]]:
        """The jobs of the depth profile, by pair of MLPs."""
        found = table.by_name(self.done)
        return {name.removeprefix(PAIR): found[name] for name in sorted(found) if name.startswith(PAIR)}

    @property
    def verdict(self) -> list[str]:
        """What was found, in findings."""
        return findings.sentences(self.lines)

    @property
    def figures(self) -> Mapping[str, go.Figure]:
        """Every picture of the report, by name."""
        return page.figures(self.looks, self.profile, self.sites)

    @property
    def notes(self) -> list[str]:
        """How it was run."""
        draws = ", ".join(f"{d} (group {group_of(d)})" for d in range(len(self.looks)))
        places = [
            f"draw {draw}, {name}: {found!r}"
            for draw, each in enumerate(self.looks)
            for name, found in each.localizations.items()
        ]
        return [
            f"Draws: {draws}; seeds are the draws' numbers. Every edit: Inject on two phrasings, at most "
            f"{STEPS} steps, the lowest learning rate of {RATES} that reaches {STOP.goal:.0%} new answers "
            f"on validation phrasings with {STOP.min_retention:.0%} retained. "
            f"Intervals: 95 %, bootstrap over people. {self.seconds:.0f} s on {self.cores} cores.",
            *places,
        ]

    def __repr__(self) -> str:
        """The table and the verdict as text."""
        titles = [table.COLUMNS[unit].title for unit in table.UNITS]
        width = max(len(name) for name in self.lines) + 1
        rows = [" " * width + "  ".join(f"{title:>22}" for title in titles)]
        for name, done in [*self.lines.items(), *self.profile.items()]:
            cells = [f"{table.mean(done, table.COLUMNS[unit])!s:>22}" for unit in table.UNITS]
            rows.append(f"{name:{width}}" + "  ".join(cells))
        return "\n".join([*rows, "", *self.verdict])

    @cached_property
    def audit(self) -> Report:
        """The full audit of the first draw's lookup edit, beside its own recipe at random places."""
        names = {LOOKUP: EDITED, "untouched": UNTOUCHED, "gold": GOLD}
        names |= {name: name for name in map(_control, range(CONTROLS))}
        first = [each for each in self.done if each.job.draw == 0 and each.job.name in names]
        rows = [row._replace(model=names[each.job.name]) for each in first for row in each.rows]
        rows.sort(key=lambda row: list(names.values()).index(row.model))
        found = self.looks[0].localizations[LOOKUP]
        placed = [f"{each.job.name}: {_shown(each)}" for each in first if each.job.name.startswith(CONTROL)]
        notes = placed or ["no control: the quick demo leaves them out"]
        title = f"the lookup edit of draw 0: {found}"
        return Report(title, tuple(rows), attacks=("relearning",), notes=tuple(notes))

    def to_html(self, path: str | Path) -> None:
        """Write the report, one file that needs nothing else.

        Args:
            path: of the file.
        """
        rows = {**self.lines, **{PAIR + pair: done for pair, done in self.profile.items()}}
        whole = page.write(rows, self.verdict, self.figures, self.notes, self.audit)
        write_text(path, whole)


def run(*, draws: int = 2, quick: bool = False, progress: bool = True) -> Demo:
    """Run the main job on the embedded model.

    Args:
        draws: how many groups of people are forgotten, one after another.
        quick: fewer rows.
        progress: whether to show a bar.
    """
    from tqdm.auto import tqdm

    started = time.perf_counter()
    hm = world.model()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with Pool(workers=cores) as pool:
        looks = pool.looks(range(draws))
        jobs = _jobs(looks, pairs(hm), hm.sites, quick=quick)
        distinct = {job.key: job for job in reversed(jobs)}
        bar = tqdm(total=len(distinct), desc="edit and examine", disable=not progress)
        found = {}
        for each in pool.all(distinct.values()):
            found[each.job.key] = each
            bar.update()
        bar.close()
    # Where two methods chose the same sites, one edit serves both lines.
    done = [replace(found[job.key], job=job) for job in jobs]
    seconds = time.perf_counter() - started
    return Demo(tuple(looks), tuple(done), hm.sites, seconds, cores)


def _jobs(
    looks: Sequence[Look], by_depth: Mapping[str, Localization], sites: ModelSites, *, quick: bool
) -> list[Job]:
    jobs = []
    for draw, each in enumerate(looks):
        jobs += [Job(draw, "untouched"), Job(draw, "gold", checkpoint="gold")]
        for name, found in each.localizations.items():
            if not quick or name in QUICK_ROWS:
                jobs.append(Job(draw, name, tuple(map(str, found))))
    for name, found in by_depth.items():
        if not quick or name in QUICK_PAIRS:
            jobs.append(Job(0, PAIR + name, tuple(map(str, found))))
    lookup = looks[0].localizations[LOOKUP]
    controls = [] if quick else distinct(sites, lookup, count=CONTROLS, seed=0)
    jobs += [Job(0, _control(n), tuple(map(str, place))) for n, place in enumerate(controls)]
    return jobs


def _shown(done: Done) -> str:
    """Where a control was fitted, and how well."""
    sites = Localization(done.job.sites)
    return f"{sites}, success {done.success:.2f}, retention {done.retention:.2f}"


def _control(number: int) -> str:
    return f"{CONTROL} {number + 1}"
