"""Edit one group of facts after another, and peel the stages off again.

1. Stage i is fitted on the model with the sum of the earlier edits applied; where a localizer is given, it
   looks at that model anew.
2. No stage is held to a fact that any stage is to change: from every retain set the forget facts of all
   groups are taken out.
3. A sequence is a value: its edits, with the number of the stage of each. Their sum is formed in the order of
   the stages from the edits that are left, so stages can be peeled off in any order, and the order does not
   show in a single bit.

What peeling promises is about weights: what is left is the sum of the edits that are left. Without the last
stage, this is the very model that stage was fitted on. It does not promise the behaviour that fitting
without the peeled stage would have given: a later edit was fitted on top of the earlier ones, and may lean
on them.

Source: the sequential edits of Guo et al., "Mechanistic Unlearning" (2024), four stages of 16 facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.objectives.reading import Objective
from mechunlearn.editing.training.fitting import edit
from mechunlearn.errors import EditError, FactError, LocalizationError

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

Localizer = Callable[["HookedModel", Facts], Localization]


@dataclass(frozen=True, eq=False, repr=False)
class EditSequence:
    """Edits that were fitted one on top of the other.

    Args:
        edits: in the order of their stages.
        stages: the number of the stage of each, as it was fitted; default 0, 1, 2 and so on.
        made_on: identity of the model that the first stage was fitted on; default as the first edit says.

    Raises:
        EditError: stages and edits differ in number, or the stages do not rise.

    Example:
        >>> both = EditSequence((Edit((), Localization(["L1.mlp"])), Edit((), Localization(["L2.mlp"]))))
        >>> both.without(0)
        EditSequence(stage 1: Localization(L2.mlp))
        >>> both.without(0).total.localization == both.localizations[1]
        True
    """

    edits: tuple[Edit, ...]
    stages: tuple[int, ...] = ()
    made_on: str = ""

    def __post_init__(self) -> None:
        edits = tuple(self.edits)
        stages = tuple(self.stages) or tuple(range(len(edits)))
        if len(stages) != len(edits) or list(stages) != sorted(set(stages)):
            raise EditError(
                f"the stages are {stages} for {len(edits)} edits; give one number for each edit, rising"
            )
        object.__setattr__(self, "edits", edits)
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "made_on", self.made_on or (edits[0].made_on if edits else ""))

    @property
    def localizations(self) -> tuple[Localization, ...]:
        """Where each of the edits was confined to."""
        return tuple(one.localization for one in self.edits)

    @property
    def total(self) -> Edit:
        """The sum of the edits, made on the model that the first stage was fitted on."""
        # Each edit knows the model it was fitted on; their sum belongs on the first of these.
        parts = [replace(one, made_on=self.made_on) for one in self.edits]
        whole = reduce(add, parts, Edit((), Localization(), made_on=self.made_on))
        place = Localization(whole.localization, source=self._source if self.edits else "")
        return replace(whole, localization=place, made_on=self.made_on)

    def without(self, *stages: int) -> EditSequence:
        """Peel stages off; the others keep their numbers.

        Args:
            *stages: their numbers.

        Raises:
            EditError: there is no such stage, or no longer.
        """
        for stage in stages:
            if stage not in self.stages:
                raise EditError(f"stage {stage} is not in this sequence; its stages are {self.stages}")
        left = [pair for pair in zip(self.stages, self.edits, strict=True) if pair[0] not in stages]
        return EditSequence(tuple(e for _, e in left), tuple(stage for stage, _ in left), self.made_on)

    def apply(self, hm: HookedModel) -> HookedModel:
        """A changed copy of the model, with the sum of the edits.

        Args:
            hm: the model that the first stage was fitted on; it stays as it is.

        Raises:
            EditError: the edits do not fit the model.
        """
        return self.total.apply(hm)

    @property
    def _source(self) -> str:
        return f"stage{'s' * (len(self.stages) > 1)} {', '.join(map(str, self.stages))} of a sequence"

    def __len__(self) -> int:
        return len(self.edits)

    def __repr__(self) -> str:
        each = [f"stage {n}: {place}" for n, place in zip(self.stages, self.localizations, strict=True)]
        return f"EditSequence({'; '.join(each) or 'no stages'})"


def edit_sequence(
    hm: HookedModel,
    groups: Sequence[Facts],
    objective: Objective,
    *,
    localization: Localization | None = None,
    localizer: Localizer | None = None,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> EditSequence:
    """Fit one edit after another, each on the model with the earlier ones applied.

    Args:
        hm: the model, which stays as it is.
        groups: the facts of each stage, with a forget set and, as the objective asks, a retain set and text.
        objective: what to minimise at every stage.
        localization: where weights may change, the same at every stage.
        localizer: or what looks for the place at every stage: a function of the model as that stage finds it
            and of the stage's facts, such as ``lambda hm, facts: mu.fact_lookup(hm, facts.forget).top(5)``.
        checkpoint: a folder for checkpoints, in which each stage has its own; None for none.
        **options: as of :func:`~mechunlearn.editing.training.fitting.edit`, such as ``steps`` and ``lr``;
            each stage starts with a fresh optimiser and the same seed.

    Raises:
        LocalizationError: both or neither of localization and localizer are given, the localizer gives
            something else, or the places of two stages share weights and neither holds the other.
        FactError: there are no groups, one is no ``Facts``, or one has no forget set.
        MechUnlearnError: as :func:`~mechunlearn.editing.training.fitting.edit` raises.

    Example:
        >>> hm, groups = mu.world.model(), [mu.world.facts(0), mu.world.facts(1)]
        >>> both = edit_sequence(hm, groups, mu.objectives.Inject(), localization=hm.sites.mlps(), steps=2,
        ...                      progress=False)
        >>> both.stages, both.edits[1].made_on == both.without(1).apply(hm).identity
        ((0, 1), True)

    Source: Guo et al., "Mechanistic Unlearning" (2024), sequential edits.
    """
    look = _look(localization, localizer)
    done: tuple[Edit, ...] = ()
    for facts in _given(groups):
        before = EditSequence(done, made_on=hm.identity)
        found = before.apply(hm) if done else hm
        place = look(found, facts)
        _require_summable(before, place)
        saved = None if checkpoint is None else Path(checkpoint) / f"stage_{len(done)}"
        done += (edit(found, place, objective, facts, checkpoint=saved, **options),)
    return EditSequence(done)


def _look(localization: Localization | None, localizer: Localizer | None) -> Localizer:
    """What gives the place of a stage."""
    if localizer is not None and localization is None:
        return localizer
    if localization is not None and localizer is None:
        return lambda hm, facts: localization
    raise LocalizationError(
        f"localization is {localization!r} and localizer {localizer!r}; give one of them: one place for "
        "every stage, or a function that looks for each"
    )


def _require_summable(before: EditSequence, place: Localization) -> None:
    """Refuse a place whose edit could not be added to the others, before it is fitted."""
    if not isinstance(place, Localization):
        raise LocalizationError(
            f"the place of stage {len(before)} is {place!r}; give a Localization, such as scores.top(5)"
        )
    _ = before.total + Edit((), place)


def _given(groups: Iterable[Facts]) -> list[Facts]:
    """The groups, without what any of them forgets in their retain sets."""
    listed = list(groups)
    if not listed or not all(isinstance(facts, Facts) for facts in listed):
        raise FactError(
            f"the groups are {[type(facts).__name__ for facts in listed]}; give at least one, each as Facts"
        )
    for facts in listed:
        facts.require("forget")
    changed = {key for facts in listed for fact in facts.forget for key in _keys(fact)}
    return [facts.where(lambda fact: fact.split != "retain" or not _keys(fact) & changed) for facts in listed]


def _keys(fact: Fact) -> set[tuple[str, ...]]:
    """What tells that two facts are the same: a phrasing or, within a relation, the answer."""
    prompts = (*fact.train_prompts, *fact.validation, *fact.held_out)
    keys: set[tuple[str, ...]] = {(fact.subject, fact.relation, prompt) for prompt in prompts}
    if fact.relation:
        keys.add((fact.subject, fact.relation, "answer", fact.answer.strip()))
    return keys
