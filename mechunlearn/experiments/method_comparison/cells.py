"""The cells of the comparison: choose, fit and examine one method at one localization.

1. A cell holds everything that its result depends on, so that its fingerprint tells whether a stored result
   belongs to it.
2. The candidate is chosen on validation phrasings. Its edit is examined once, on held-out phrasings, as
   multiple choice, and by what should follow or stay; outcomes are averaged within a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from mechunlearn.auditing.evaluation import Exam
from mechunlearn.auditing.sections import Question
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.grid import fingerprint
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Recipe
from mechunlearn.errors import TrainingError
from mechunlearn.experiments.choosing import Choice, choose
from mechunlearn.experiments.embedded import Checkpoint, facts_of, model
from mechunlearn.experiments.method_comparison.catalogue import STOP
from mechunlearn.experiments.method_comparison.closed import Solve, choose_solved
from mechunlearn.experiments.method_comparison.results import MethodResult
from mechunlearn.experiments.method_comparison.table import COLUMNS, RETAIN
from mechunlearn.models.hooked import HookedModel

NOT_APPLICABLE = "not applicable: holds no whole mlp.out in the lower half of the blocks"


@dataclass(frozen=True)
class MethodCell:
    """One method at one localization, both by name.

    The localization's name is empty for a model that is examined as it is; there are no candidates where the
    method is not applicable; ``seed`` decides questions and the group of people.
    """

    method: str
    localization: str = ""
    sites: tuple[str, ...] = ()
    candidates: tuple[Recipe, ...] | tuple[Solve, ...] = ()
    seed: int = 0
    checkpoint: Checkpoint = "original"

    @property
    def key(self) -> str:
        """Method, localization, and a fingerprint of everything but the code that the result depends on."""
        names = [_dashed(name) for name in (self.method, self.localization) if name]
        identity = model(self.checkpoint).identity
        return "--".join([*names, fingerprint(self, identity, list(COLUMNS.values()))])

    def run(self) -> dict[str, Any]:
        """Choose, fit and examine; returns the fields of a `MethodResult`."""
        return asdict(self._result())

    def _result(self) -> MethodResult:
        hm, facts = model(self.checkpoint), facts_of(self.seed)
        result = MethodResult(self.method, self.localization)
        if not self.localization:
            return replace(result, values=_examined(hm, self.seed))
        if not self.candidates:
            return replace(result, note=NOT_APPLICABLE)
        try:
            choice = _chosen(hm, Localization(self.sites), self.candidates, facts)
        except TrainingError as error:
            return replace(result, note=f"could not be fitted: {error}")
        recipe = choice.recipe
        return replace(
            result,
            values=_examined(choice.edit.apply(hm), self.seed),
            chosen=choice.chosen,
            trials=choice.trials,
            aim=recipe.objective.aim if recipe is not None else "new",
            size=hm.size(choice.edit.localization),
            changed=changed(choice.edit),
        )


def changed(edit: Edit) -> int:
    """Count the weights that an edit changes; its slices must not overlap."""
    return sum(int(delta.values.count_nonzero()) for delta in edit.deltas)


def _chosen(
    hm: HookedModel, localization: Localization, candidates: Sequence[Recipe] | Sequence[Solve], facts: Facts
) -> Choice:
    recipes = [candidate for candidate in candidates if isinstance(candidate, Recipe)]
    if recipes:
        return choose(hm, localization, recipes, facts)
    solves = [candidate for candidate in candidates if isinstance(candidate, Solve)]
    return choose_solved(hm, solves, facts, stop=STOP)


@lru_cache(maxsize=1)
def _exam(seed: int) -> Exam:
    """The demo's questions without its attacks and probes, and the retain set in held-out phrasings.

    It is kept, because all cells of one run share a seed.
    """
    facts = facts_of(seed)
    exam = Exam.of(model("original"), facts, (), seed=seed)
    retained = tuple(
        Question(RETAIN, "held_out", fact.prompt, question.replace(entailed=(), others=(), neighbours={}))
        for fact in facts.retain
        for question in fact.phrasings("held_out")
    )
    return replace(exam, questions=exam.questions + retained, readers=())


def _examined(hm: HookedModel, seed: int) -> Mapping[str, Mapping[str, float]]:
    rows = _exam(seed).take(hm, "")
    return {name: column.per_person(rows) for name, column in COLUMNS.items()}


def _dashed(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())
