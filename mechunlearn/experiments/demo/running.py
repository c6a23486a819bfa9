"""Run the demo: find localizations, edit and examine every cell, then table, figures and findings.

1. For every draw (a forget group and a seed) the localizers are run and the localizations are chosen.
2. For every draw the untouched and the gold model take the exam, and one edit per localization is fitted
   and takes it; on the first draw also one edit per pair of neighbouring MLPs, and refits at random.
3. The draws of a line are pooled, and the lines become the report, whatever they say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mechunlearn.auditing.controls import distinct
from mechunlearn.auditing.report.estimates import CONTROL, GOLD
from mechunlearn.auditing.report.report import Report
from mechunlearn.core import grid
from mechunlearn.core.estimates import EDITED, UNTOUCHED
from mechunlearn.core.files import write_text
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.experiments.demo import findings, page
from mechunlearn.experiments.demo.cells import RATES, STEPS, STOP, DemoCell, DemoResult
from mechunlearn.experiments.demo.lines import Lines, mean
from mechunlearn.experiments.demo.looking import LOOKUP, RANDOM, Look, look, pairs
from mechunlearn.experiments.embedded import facts_of, group_of, model
from mechunlearn.experiments.outcomes import COLUMNS

if TYPE_CHECKING:
    import plotly.graph_objects as go

QUICK_LINES = (LOOKUP, RANDOM)
QUICK_THINNED = 4
PAIR = "MLPs "
CONTROLS = tuple(f"{CONTROL} {number}" for number in (1, 2, 3))


@dataclass(frozen=True)
class Demo:
    """The result of the demo; its `repr` is a table with the verdict.

    ``looks`` has one entry per draw; ``results`` includes the lines of the depth profile and the controls.
    """

    looks: tuple[Look, ...]
    results: Lines
    sites: ModelSites
    seconds: float
    cores: int

    @cached_property
    def lines(self) -> Lines:
        """The lines of the table."""
        names = (UNTOUCHED, GOLD, *self.looks[0].localizations)
        return {name: self.results[name] for name in names if name in self.results}

    @cached_property
    def profile(self) -> Lines:
        """The lines of the depth profile, by pair of MLPs."""
        names = sorted(name for name in self.results if name.startswith(PAIR))
        return {name.removeprefix(PAIR): self.results[name] for name in names}

    @property
    def verdict(self) -> list[str]:
        """The findings, one a sentence."""
        return findings.sentences(self.lines)

    @property
    def figures(self) -> Mapping[str, go.Figure]:
        """Every figure of the report, by name."""
        return page.figures(self.looks, self.profile, self.sites)

    @property
    def notes(self) -> list[str]:
        """How it was run, and where every edit was made."""
        draws = ", ".join(f"{draw} (group {group_of(draw)})" for draw in range(len(self.looks)))
        localizations = [
            f"draw {draw}, {name}: {localization!r}"
            for draw, look in enumerate(self.looks)
            for name, localization in look.localizations.items()
        ]
        thinned = self.results[UNTOUCHED][0].cell.thinned
        people = f"Draws: {draws}" + (f", one fact of every {thinned}" if thinned > 1 else "")
        return [
            f"{people}; seeds are the draws' numbers. Every edit: Inject on two phrasings, at most "
            f"{STEPS} steps, the lowest learning rate of {RATES} that reaches {STOP.goal:.0%} new answers "
            f"on validation phrasings with {STOP.min_retention:.0%} retained. "
            f"Intervals: 95 %, bootstrap over people. {self.seconds:.0f} s on {self.cores} cores.",
            *localizations,
        ]

    def __repr__(self) -> str:
        """The table and the verdict as text."""
        width = max(len(name) for name in self.lines) + 1
        rows = [" " * width + "  ".join(f"{column.title:>22}" for column in COLUMNS.values())]
        for name, line in [*self.lines.items(), *self.profile.items()]:
            rows.append(f"{name:{width}}" + "  ".join(f"{mean(line, column)!s:>22}" for column in COLUMNS))
        return "\n".join([*rows, "", *self.verdict])

    @cached_property
    def audit(self) -> Report:
        """The full audit of the first draw's lookup edit, beside the same recipe at random localizations."""
        models = {LOOKUP: EDITED, UNTOUCHED: UNTOUCHED, GOLD: GOLD} | {name: name for name in CONTROLS}
        results = {models[name]: line[0] for name, line in self.results.items() if name in models}
        rows = [
            row._replace(model=name)
            for name in models.values()
            if name in results
            for row in results[name].rows
        ]
        notes = [f"{name}: {_control_note(results[name])}" for name in CONTROLS if name in results]
        return Report(
            f"the lookup edit of draw 0: {self.looks[0].localizations[LOOKUP]}",
            tuple(rows),
            attacks=("relearning",),
            notes=tuple(notes or ["no control: the quick demo leaves them out"]),
        )

    def to_html(self, path: str | Path) -> None:
        """Write the report into one self-contained file."""
        lines = {**self.lines, **{PAIR + pair: line for pair, line in self.profile.items()}}
        write_text(path, page.write(lines, self.verdict, self.figures, self.notes, self.audit))


def run(
    *,
    draws: int = 2,
    quick: bool = False,
    workers: int | None = None,
    backend: Literal["local"] = "local",
    progress: bool = True,
) -> Demo:
    """Run the main job on the embedded model for ``draws`` groups of people, one after another.

    ``quick`` runs the lookup and random MLPs only, with a quarter of the people; ``workers`` None stands for
    one process per core.
    """
    started = time.perf_counter()
    hm = model("original")
    # A container or a batch system may allow fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # The number of threads changes the order of sums, so the localizers run with as many as the cells: one.
    with grid.one_thread():
        looks = [look(hm, facts_of(draw), seed=draw) for draw in range(draws)]
    lines = _lines(looks, pairs(hm), hm.sites, quick=quick)
    # Where two methods chose the same sites, one cell serves both lines.
    cells = dict.fromkeys(cell for line in lines.values() for cell in line)
    records = grid.run(list(cells), workers=workers or cores, backend=backend, progress=progress)
    results = {
        name: tuple(DemoResult.from_json(cell, records[cell.key]) for cell in line)
        for name, line in lines.items()
    }
    return Demo(tuple(looks), results, hm.sites, time.perf_counter() - started, cores)


def _lines(
    looks: Sequence[Look], by_depth: Mapping[str, Localization], sites: ModelSites, *, quick: bool
) -> dict[str, list[DemoCell]]:
    """The cells of every line, one per draw."""
    draws, thinned = range(len(looks)), QUICK_THINNED if quick else 1

    def edited(draw: int, localization: Localization) -> DemoCell:
        return DemoCell(draw, tuple(map(str, localization)), thinned=thinned)

    lines = {UNTOUCHED: [DemoCell(draw, thinned=thinned) for draw in draws]}
    lines[GOLD] = [DemoCell(draw, checkpoint="gold", thinned=thinned) for draw in draws]
    for name in looks[0].localizations:
        if not quick or name in QUICK_LINES:
            lines[name] = [edited(draw, looks[draw].localizations[name]) for draw in draws]
    if not quick:
        lines |= {PAIR + name: [edited(0, localization)] for name, localization in by_depth.items()}
        controls = distinct(sites, looks[0].localizations[LOOKUP], count=len(CONTROLS), seed=0)
        lines |= {name: [edited(0, control)] for name, control in zip(CONTROLS, controls, strict=False)}
    return lines


def _control_note(result: DemoResult) -> str:
    sites = Localization(result.cell.sites)
    return f"{sites}, success {result.success:.2f}, retention {result.retention:.2f}"
