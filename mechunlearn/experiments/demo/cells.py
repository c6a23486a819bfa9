"""The cells of the demo: fit an edit by the recipe that all share, and let the edited model take an exam.

1. A cell is one model (original, gold, or the original edited at some sites) and the exam of one draw.
2. Every edit has the same recipe. Its learning rate is the lowest of :data:`RATES` with which the goal on
   validation phrasings is reached, or, if none reaches it, the one that comes closest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mechunlearn.auditing.attacks.relearning import Relearn
from mechunlearn.auditing.evaluation import Exam
from mechunlearn.auditing.report.estimates import Row
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.grid import fingerprint
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.recipes import Recipe, Stop
from mechunlearn.editing.objectives.likelihood import Inject
from mechunlearn.experiments.choosing import choose
from mechunlearn.experiments.embedded import Checkpoint, facts_of, model

RATES = (1e-3, 3e-3)
STEPS = 120
STOP = Stop()


@dataclass(frozen=True)
class DemoCell:
    """One model, examined with one draw's facts.

    ``draw`` decides the group of people and is the seed; without ``sites`` the checkpoint is not edited. Only
    one fact of every ``thinned`` is used, of those to forget, to retain and to test alike.
    """

    draw: int
    sites: tuple[str, ...] = ()
    checkpoint: Checkpoint = "original"
    thinned: int = 1

    @property
    def facts(self) -> Facts:
        """The facts that the edit is fitted on and the exam asks for."""
        return facts_of(self.draw)[:: self.thinned]

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The candidates of the edit, which differ in their learning rate."""
        return tuple(Recipe(Inject(), steps=STEPS, lr=lr, seed=self.draw, stop=STOP) for lr in RATES)

    @property
    def key(self) -> str:
        """The draw, with a fingerprint of everything but the code that the result depends on."""
        identity = model(self.checkpoint).identity
        return f"draw-{self.draw}-{self.checkpoint}-{fingerprint(self, self.recipes, identity)}"

    def run(self) -> dict[str, Any]:
        """Fit the edit, if there is one, and take the exam; returns the fields of a `DemoResult`."""
        hm = model(self.checkpoint)
        if not self.sites:
            # Rows carry no model's name: one cell may stand in several lines of the table.
            return {"rows": _exam(self.draw, self.thinned).take(hm, "")}
        localization = Localization(self.sites)
        choice = choose(hm, localization, self.recipes, self.facts)
        chosen, recipe = choice.chosen, choice.recipe or self.recipes[0]
        return {
            "rows": _exam(self.draw, self.thinned).take(choice.edit.apply(hm), ""),
            "lr": recipe.lr,
            "steps": chosen.step,
            "success": chosen.success,
            "retention": chosen.retention,
            "size": hm.size(localization),
        }


@dataclass(frozen=True)
class DemoResult:
    """The rows of a cell's exam, and how its edit was fitted.

    Args:
        lr: the learning rate that was chosen; 0 without an edit.
        steps: the step that was kept.
        success: share of validation questions with the new answer at that step.
        retention: accuracy on the retain set at that step.
        size: number of weights that the edit could change.
    """

    cell: DemoCell
    rows: tuple[Row, ...]
    lr: float = 0.0
    steps: int = 0
    success: float = 0.0
    retention: float = 0.0
    size: int = 0

    @classmethod
    def from_json(cls, cell: DemoCell, record: Mapping[str, Any]) -> DemoResult:
        """Make a result of the fields that ``cell.run`` returned, read from JSON."""
        return cls(cell, **{**record, "rows": tuple(Row(*row) for row in record["rows"])})


@lru_cache(maxsize=4)
def _exam(draw: int, thinned: int) -> Exam:
    return Exam.of(model("original"), DemoCell(draw, thinned=thinned).facts, (Relearn(),), seed=draw)
