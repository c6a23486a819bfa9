"""Edit one group of facts after another, and remove stages again.

1. Fit stage i on the model with the sum of the earlier edits applied; a localizer, if there is one, localizes
   in that model.
2. Remove from every retain set the facts that any stage is to change.
3. A sequence is a value: its edits and the number of each one's stage. The sum of the remaining edits is
   always formed in the order of the stages, so stages can be removed in any order with the same bits.

Removing a stage leaves the sum of the other edits' weights. Without the last stage, this is exactly the model
that the last stage was fitted on. Its behaviour is not that of a sequence fitted without the removed stage: a
later edit was fitted on top of the earlier ones, and may depend on them.

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
from mechunlearn.editing.objectives.requests import Objective
from mechunlearn.editing.training.fitting import edit
from mechunlearn.errors import EditError, FactError, LocalizationError

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel

Localizer = Callable[["HookedModel", Facts], Localization]


@dataclass(frozen=True, eq=False, repr=False)
class EditSequence:
    """Edits that were fitted one on top of the other.

    Args:
        edits: the edits, in the order of their stages.
        stages: the number of each edit's stage; default 0, 1, 2 and so on.
        made_on: identity of the model that the first stage was fitted on; default: the first edit's.

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
        """The localization of each edit."""
        return tuple(one.localization for one in self.edits)

    @property
    def total(self) -> Edit:
        """The sum of the edits, made on the model that the first stage was fitted on."""
        # Each edit names the model that it was fitted on; their sum belongs to the first of these.
        edits = [replace(one, made_on=self.made_on) for one in self.edits]
        total = reduce(add, edits, Edit((), Localization(), made_on=self.made_on))
        localization = Localization(total.localization, source=self._source if self.edits else "")
        return replace(total, localization=localization, made_on=self.made_on)

    def without(self, *stages: int) -> EditSequence:
        """Remove stages; the others keep their numbers.

        Args:
            *stages: numbers of the stages to remove.

        Raises:
            EditError: the sequence has no such stage.
        """
        for stage in stages:
            if stage not in self.stages:
                raise EditError(f"stage {stage} is not in this sequence; its stages are {self.stages}")
        rest = [pair for pair in zip(self.stages, self.edits, strict=True) if pair[0] not in stages]
        return EditSequence(tuple(e for _, e in rest), tuple(stage for stage, _ in rest), self.made_on)

    def apply(self, hm: HookedModel) -> HookedModel:
        """Return a copy of the model with the sum of the edits applied.

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
        stages = [f"stage {n}: {sites}" for n, sites in zip(self.stages, self.localizations, strict=True)]
        return f"EditSequence({'; '.join(stages) or 'no stages'})"


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
        groups: the facts of each stage: a forget set and, if the objective needs them, a retain set and text.
        objective: the objective to minimise at every stage.
        localization: the weights that may change, the same at every stage.
        localizer: instead of a localization, a function that returns one for every stage, called with the
            model before that stage and the stage's facts, such as
            ``lambda hm, facts: mu.fact_lookup(hm, facts.forget).top(5)``.
        checkpoint: folder of the checkpoints, with one folder per stage; None for no checkpoints.
        **options: options of :func:`~mechunlearn.editing.training.fitting.edit`, such as ``steps`` and
            ``lr``; each stage starts with a fresh optimiser and the same seed.

    Raises:
        LocalizationError: both or neither of localization and localizer are given, the localizer returns
            something else, or the localizations of two stages overlap and neither contains the other.
        FactError: there are no groups, one is not ``Facts``, or one has no forget set.
        MechUnlearnError: as :func:`~mechunlearn.editing.training.fitting.edit` raises.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> groups = [mu.Facts([fact, *facts.retain[:2]]) for fact in facts.forget[:2]]
        >>> both = edit_sequence(hm, groups, mu.objectives.Inject(text=0.0), localization=hm.sites.mlps(),
        ...                      steps=1, stop=None, progress=False)
        >>> both.stages, both.edits[1].made_on == both.without(1).apply(hm).identity
        ((0, 1), True)

    Source: Guo et al., "Mechanistic Unlearning" (2024), sequential edits.
    """
    localize = _localizer(localization, localizer)
    edits: tuple[Edit, ...] = ()
    for facts in _training_facts(groups):
        earlier = EditSequence(edits, made_on=hm.identity)
        current = earlier.apply(hm) if edits else hm
        sites = localize(current, facts)
        _require_summable(earlier, sites)
        folder = None if checkpoint is None else Path(checkpoint) / f"stage_{len(edits)}"
        edits += (edit(current, sites, objective, facts, checkpoint=folder, **options),)
    return EditSequence(edits)


def _localizer(localization: Localization | None, localizer: Localizer | None) -> Localizer:
    if localizer is not None and localization is None:
        return localizer
    if localization is not None and localizer is None:
        return lambda hm, facts: localization
    raise LocalizationError(
        f"localization is {localization!r} and localizer {localizer!r}; give one of them: one place for "
        "every stage, or a function that looks for each"
    )


def _require_summable(earlier: EditSequence, sites: Localization) -> None:
    """Refuse, before fitting, a localization whose edit could not be added to the earlier ones."""
    if not isinstance(sites, Localization):
        raise LocalizationError(
            f"the place of stage {len(earlier)} is {sites!r}; give a Localization, such as scores.top(5)"
        )
    _ = earlier.total + Edit((), sites)


def _training_facts(groups: Iterable[Facts]) -> list[Facts]:
    """The groups, with every fact that any of them forgets removed from their retain sets."""
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
    """The keys of a fact; two facts with a common phrasing, or relation and answer, are the same."""
    prompts = (*fact.train_prompts, *fact.validation, *fact.held_out)
    keys: set[tuple[str, ...]] = {(fact.subject, fact.relation, prompt) for prompt in prompts}
    if fact.relation:
        keys.add((fact.subject, fact.relation, "answer", fact.answer.strip()))
    return keys
