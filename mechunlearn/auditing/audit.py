"""Audit an edit: attack it, and compare it with the untouched model, the gold model and controls.

1. Prepare one exam, the same for every model: questions, texts, probes and attacks (``evaluation``).
2. Let the edited model take it, the untouched model, the gold model if there is one, and models edited by the
   same recipe on random localizations of equal size (``controls``).
3. Compare them fact by fact (``report.estimates``) and state the result in words (``report.verdicts``).

No model is changed: each edit and each attack works on a fork. What an audit does not find may still be
there, so it says "not elicited by these attacks", never "removed".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tqdm.auto import tqdm

from mechunlearn.auditing.attacks.attack import Attack
from mechunlearn.auditing.attacks.relearning import Relearn
from mechunlearn.auditing.controls import outcome_in_words, refits
from mechunlearn.auditing.evaluation import Exam
from mechunlearn.auditing.report.estimates import CONTROL, GOLD, Row
from mechunlearn.auditing.report.report import Report
from mechunlearn.core.estimates import EDITED, UNTOUCHED
from mechunlearn.core.facts.collection import Facts
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.errors import MechUnlearnError
from mechunlearn.models.hooked import HookedModel


def audit(
    hm: HookedModel,
    edit: Edit,
    facts: Facts,
    *,
    gold: HookedModel | None = None,
    attacks: Sequence[Attack] = (Relearn(),),
    controls: int = 3,
    seed: int = 0,
    progress: bool = True,
    reuse: Report | None = None,
) -> Report:
    """Attack an edit and report what comes back, beside the untouched model, the gold model and controls.

    Args:
        hm: the model that the edit was made on; it stays as it is.
        edit: the edit to audit.
        facts: the facts that the edit was made for, with all that is to be scored beside them.
        gold: a model that never learned the forget facts, if there is one; it stays as it is.
        attacks: the attacks to try.
        controls: number of random localizations of equal size on which the edit's recipe is refitted.
        seed: seed of the halves, multiple-choice orders, attacks, control localizations and bootstrap.
        progress: whether to show progress bars.
        reuse: an earlier report on the same model, gold model, facts, attacks and seed, whose rows of the
            untouched and the gold model are used again instead of being measured.

    Raises:
        FactError: the forget set is empty.
        EditError: the edit does not fit the model.
        MechUnlearnError: two attacks have one name, or `reuse` is a report on something else.

    Example:
        >>> import mechunlearn as mu
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> few = mu.Facts([facts.forget[0].replace(neighbours={}), *facts.retain[:2]], text=facts.text[:2])
        >>> nothing = mu.Edit((), mu.Localization())
        >>> mu.audit(hm, nothing, few, attacks=(), controls=0, progress=False).verdict.word
        'no change'

    Source: Lynch et al., "Eight Methods to Evaluate Robust Unlearning in LLMs" (2024); Deeb and Roger (2024).
    """
    exam = Exam.of(hm, facts, attacks, seed=seed)
    basis = (hm.identity, gold.identity if gold else None, facts, tuple(attacks), seed)
    measured = _reused(reuse, basis)
    candidates = {EDITED: edit.apply(hm), UNTOUCHED: hm} | ({GOLD: gold} if gold else {})
    refitted, notes = refits(hm, edit, facts, count=controls, seed=seed, progress=progress)

    candidates |= {f"{CONTROL} {n}": control.apply(hm) for n, control in enumerate(refitted, start=1)}
    rows: list[Row] = []
    for name, candidate in tqdm(candidates.items(), desc="audit", disable=not progress, leave=False):
        rows += measured[name] if name in measured else exam.take(candidate, name)
    fits = [f"{c.localization} {outcome_in_words(c)}".rstrip() for c in refitted]
    return Report(
        title=repr(edit),
        rows=tuple(rows),
        attacks=tuple(attack.name for attack in attacks),
        absent=exam.absent | ({} if gold else {"gold model": "audit(..., gold=hm)"}),
        notes=(
            *notes,
            *(f"{CONTROL} {number}: {fit}" for number, fit in enumerate(fits, start=1)),
            *_warning_of_another_base(hm, edit),
        ),
        seed=seed,
        basis=basis,
    )


def _reused(reuse: Report | None, basis: tuple[object, ...]) -> Mapping[str, list[Row]]:
    """The rows of the untouched and the gold model in an earlier report, which must have the same basis."""
    if reuse is None:
        return {}
    names = ("model", "gold model", "facts", "attacks", "seed")
    for name, expected, actual in zip(names, basis, reuse.basis or [None] * len(names), strict=True):
        if expected != actual:
            raise MechUnlearnError(
                f"the report to reuse is about another {name}, so its rows cannot stand beside this edit; "
                "leave out reuse="
            )
    return {name: [row for row in reuse.rows if row.model == name] for name in (UNTOUCHED, GOLD)}


def _warning_of_another_base(hm: HookedModel, edit: Edit) -> tuple[str, ...]:
    if edit.made_on and edit.made_on != hm.identity:
        return (
            f"the edit was made on another model ({edit.made_on}) than it was audited on ({hm.identity})",
        )
    return ()
