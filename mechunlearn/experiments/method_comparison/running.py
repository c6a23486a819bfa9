"""Run the comparison: every method at every place, kept cell by cell, then tables, picture and findings.

1. The lookup is found, and a random place of its size drawn.
2. Jobs whose cells are stored already are left out; the others run, and each cell is stored as it is done.
3. Tables, picture and sentences are made from the cells, and written into a folder, or into a page between
   two markers, so that the page can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mechunlearn.core.files import write_text, write_with
from mechunlearn.errors import DataError, MechUnlearnError, one_of, require_positive
from mechunlearn.experiments.demo.jobs import group_of
from mechunlearn.experiments.demo.looking import EVERYTHING
from mechunlearn.experiments.method_comparison import cells, findings, table
from mechunlearn.experiments.method_comparison.catalogue import METHODS, RATES, STEPS, STOP, TRAINED, options
from mechunlearn.experiments.method_comparison.cells import GOLD, UNTOUCHED, Cell
from mechunlearn.experiments.method_comparison.jobs import Job, all_done, facts_of, model
from mechunlearn.experiments.method_comparison.picture import tradeoff
from mechunlearn.experiments.method_comparison.places import described, places

if TYPE_CHECKING:
    import plotly.graph_objects as go

BEGIN, END = "<!-- methods table -->", "<!-- end of methods table -->"


@dataclass(frozen=True)
class Comparison:
    """Every method at every place; shows itself as its table.

    Args:
        cells: the lines, method by method.
        steps: the budget.
        seed: of everything random.
        where: the localizations in words, by name.
        total: how many weights the model has.
    """

    cells: tuple[Cell, ...]
    steps: int
    seed: int
    where: tuple[str, ...]
    total: int

    @property
    def sentences(self) -> list[str]:
        """What was found, by rule."""
        return findings.sentences(self.cells, STOP)

    @property
    def figure(self) -> go.Figure:
        """Forgotten against maintained."""
        return tradeoff(self.cells)

    def __repr__(self) -> str:
        """Tables and findings as Markdown."""
        return "\n\n".join(
            [
                f"Group {group_of(self.seed)}, seed {self.seed}, at most {self.steps} steps; learning rates "
                f"{', '.join(f'{rate:g}' for rate in RATES)}; {'; '.join(self.where)}. Intervals: 95 %, "
                "bootstrap over people.",
                table.outcomes(self.cells),
                "How each edit was fitted:",
                table.fits(self.cells, total=self.total),
                "In sentences made by rule:",
                "\n".join(f"- {sentence}" for sentence in self.sentences),
            ]
        )

    def write(self, folder: str | Path) -> None:
        """Write ``methods.md`` and ``tradeoff.html``.

        Args:
            folder: made if needed.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        write_text(place / "methods.md", f"{self!r}\n")
        write_with(place / "tradeoff.html", self.figure.write_html)

    def write_into(self, page: str | Path) -> None:
        """Put the tables and findings into a page, between its two markers.

        Args:
            page: a Markdown file.

        Raises:
            DataError: it does not have both markers, in order.
        """
        path = Path(page)
        text = path.read_text(encoding="utf-8")
        begin, end = text.find(BEGIN), text.find(END)
        if not 0 <= begin < end:
            raise DataError(f"{path} does not have the lines {BEGIN} and {END}, in this order; add them")
        write_text(path, f"{text[: begin + len(BEGIN)]}\n\n{self!r}\n\n{text[end:]}")


def run(
    folder: str | Path,
    *,
    only: Sequence[str] = METHODS,
    steps: int = STEPS,
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
) -> Comparison:
    """Run methods on the embedded model, at the lookup, at random, and everywhere.

    Args:
        folder: where every cell is kept as it is done; cells found there are not made again.
        only: the methods to run.
        steps: the budget of every trained edit.
        seed: of examples, questions and the random place; modulo 4 it is the group of people.
        workers: processes of one thread each; with one, all is done in this process.
        progress: whether to show a bar.

    Raises:
        MechUnlearnError: there is no such method, or a number is out of its range.
        DataError: a stored cell is damaged.
    """
    from tqdm.auto import tqdm

    for name in only:
        if name not in METHODS:
            raise MechUnlearnError(one_of("method", name, METHODS))
    require_positive(steps=steps, workers=workers)
    kept = Path(folder)
    kept.mkdir(parents=True, exist_ok=True)
    hm = model("original")
    found = places(hm, facts_of(seed), seed=seed)
    jobs = [Job(UNTOUCHED, seed=seed), Job(GOLD, seed=seed, checkpoint="gold")]
    for method in only:
        for name, place in found.items():
            tried = options(method, hm, place, steps=steps, seed=seed)
            jobs.append(Job(method, name, tuple(map(str, place)), tried, seed))
    done = {job: cells.load(kept / job.file, job.key) for job in jobs}
    # The closed forms take longest, so they start first; nothing else depends on the order.
    missing = sorted(
        (job for job, cell in done.items() if cell is None), key=lambda job: job.method in TRAINED
    )
    for job, cell in tqdm(all_done(missing, workers=workers), total=len(missing), disable=not progress):
        cells.save(kept / job.file, job.key, cell)
        done[job] = cell
    where = tuple(f"{name} is {described(place)}" for name, place in found.items() if name != EVERYTHING)
    return Comparison(tuple(c for c in done.values() if c), steps, seed, where, hm.sites.total)
