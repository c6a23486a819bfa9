"""Run the comparison: every method at every localization, then tables, figure and findings.

1. The lookup is found, and random components of its size are drawn.
2. Cells whose results are stored already are not run again.
3. Tables, figure and sentences are made from the results, and written into a folder, or into a page between
   two markers, so that the page can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mechunlearn.core import grid
from mechunlearn.core.checks import positive
from mechunlearn.core.files import write_text
from mechunlearn.errors import DataError, MechUnlearnError, one_of
from mechunlearn.experiments.demo.looking import EVERYTHING
from mechunlearn.experiments.embedded import facts_of, group_of, model
from mechunlearn.experiments.method_comparison import findings, table
from mechunlearn.experiments.method_comparison.catalogue import METHODS, RATES, STEPS, STOP, TRAINED, options
from mechunlearn.experiments.method_comparison.cells import MethodCell
from mechunlearn.experiments.method_comparison.localizations import described, localizations
from mechunlearn.experiments.method_comparison.picture import tradeoff
from mechunlearn.experiments.method_comparison.results import GOLD, UNTOUCHED, MethodResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

BEGIN, END = "<!-- methods table -->", "<!-- end of methods table -->"


@dataclass(frozen=True)
class Comparison:
    """Every method at every localization; its `repr` is its table.

    Args:
        results: the lines, method by method.
        steps: the budget of steps.
        seed: seed of everything random.
        where: the localizations in words.
        total: number of weights of the model.
    """

    results: tuple[MethodResult, ...]
    steps: int
    seed: int
    where: tuple[str, ...]
    total: int

    @property
    def sentences(self) -> list[str]:
        """The findings, one a sentence, by the rule in ``findings``."""
        return findings.sentences(self.results, STOP)

    @property
    def figure(self) -> go.Figure:
        """The figure of what was forgotten against what was maintained."""
        return tradeoff(self.results)

    def __repr__(self) -> str:
        """Tables and findings as Markdown."""
        return "\n\n".join(
            [
                f"Group {group_of(self.seed)}, seed {self.seed}, at most {self.steps} steps; learning rates "
                f"{', '.join(f'{rate:g}' for rate in RATES)}; {'; '.join(self.where)}. Intervals: 95 %, "
                "bootstrap over people.",
                table.outcome_table(self.results),
                "How each edit was fitted:",
                table.fit_table(self.results, total=self.total),
                "In sentences made by rule:",
                "\n".join(f"- {sentence}" for sentence in self.sentences),
            ]
        )

    def write(self, folder: str | Path) -> None:
        """Write ``methods.md`` and ``tradeoff.html``.

        Args:
            folder: the folder, created if needed.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        write_text(target / "methods.md", f"{self!r}\n")
        write_text(target / "tradeoff.html", self.figure.to_html())

    def write_into(self, page: str | Path) -> None:
        """Write the tables and findings into a page, between its two markers.

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
    backend: Literal["local"] = "local",
    progress: bool = True,
) -> Comparison:
    """Run methods on the embedded model, at the lookup, at random, and everywhere.

    Args:
        folder: folder of the results, one file per cell; cells whose files are there are not run again.
        only: the methods to run.
        steps: the budget of every trained edit.
        seed: seed of examples, questions and the random components; modulo 4 it is the group of people.
        workers: number of processes; with 1, all cells run in this process.
        backend: where cells run.
        progress: show a progress bar.

    Raises:
        MechUnlearnError: there is no such method, or a number is out of its range.
        GridError: a cell failed; the others are stored.
        DataError: a stored result is damaged.
    """
    for name in only:
        if name not in METHODS:
            raise MechUnlearnError(one_of("method", name, METHODS))
    positive(MechUnlearnError, steps=steps, workers=workers)
    hm = model("original")
    by_name = localizations(hm, facts_of(seed), seed=seed)
    cells = [MethodCell(UNTOUCHED, seed=seed), MethodCell(GOLD, seed=seed, checkpoint="gold")]
    for method in only:
        for name, localization in by_name.items():
            candidates = options(method, hm, localization, steps=steps, seed=seed)
            cells.append(MethodCell(method, name, tuple(map(str, localization)), candidates, seed))
    # The closed forms take longest, so they start first; nothing else depends on the order.
    order = sorted(cells, key=lambda cell: cell.method in TRAINED)
    records = grid.run(order, folder, workers=workers, backend=backend, progress=progress)
    results = tuple(MethodResult.from_json(records[cell.key]) for cell in cells)
    where = tuple(f"{name} is {described(sites)}" for name, sites in by_name.items() if name != EVERYTHING)
    return Comparison(results, steps, seed, where, hm.sites.total)
