"""Doubt an edit: attack it, and compare it with what it must be compared with.

1. One exam is written: every question, text, probe and attack, the same for every model (``examining``).
2. It is taken by the edited model, by the untouched one, by the gold model if there is one, and by the same
   recipe refitted on random localizations of equal size (``controls``).
3. The report compares them fact by fact (``estimates``) and says what it found in words (``verdicts``).

No model is changed: each edit and each attack works on a fork. What an audit does not find may still be
there; it says "not elicited by these attacks", never "removed".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tqdm.auto import tqdm

from mechunlearn.auditing.attacks.attack import Attack
from mechunlearn.auditing.attacks.relearning import Relearn
from mechunlearn.auditing.controls import fitted, refits
from mechunlearn.auditing.evaluation import Exam
from mechunlearn.auditing.report.estimates import CONTROL, EDITED, GOLD, UNTOUCHED, Row
from mechunlearn.auditing.report.report import Report
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
        hm: the model the edit belongs to; it stays as it is.
        edit: what is doubted.
        facts: those it was made for, with everything that is to be scored.
        gold: a model that never learned the forget facts, if there is one; it stays as it is.
        attacks: what is tried.
        controls: how often the edit's recipe is refitted on a random localization of equal size.
        seed: of the deal into halves, multiple-choice orders, attacks, control localizations and bootstrap.
        progress: whether to show bars.
        reuse: an earlier report on the same model, gold model, facts, attacks and seed, whose rows for the
            untouched and the gold model are taken over instead of being measured again.

    Raises:
        FactError: the forget set is empty.
        EditError: the edit does not fit the model.
        MechUnlearnError: two attacks have one name, or `reuse` is a report on something else.

    Example:
        >>> import mechunlearn as mu
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> nothing = mu.Edit((), mu.Localization())
        >>> mu.audit(hm, nothing, facts, attacks=(), progress=False).verdict.word
        'no change'

    Source: Lynch et al., "Eight Methods to Evaluate Robust Unlearning in LLMs" (2024); Deeb and Roger (2024).
    """
    exam = Exam.of(hm, facts, attacks, seed=seed)
    basis = (hm.identity, gold.identity if gold else None, facts, tuple(attacks), seed)
    known = _known(reuse, basis)
    candidates = {EDITED: edit.apply(hm), UNTOUCHED: hm} | ({GOLD: gold} if gold else {})
    refitted, notes = refits(hm, edit, facts, count=controls, seed=seed, progress=progress)
    candidates |= {f"{CONTROL} {n}": control.apply(hm) for n, control in enumerate(refitted, start=1)}
    rows: list[Row] = []
    for name, candidate in tqdm(candidates.items(), desc="audit", disable=not progress, leave=False):
        rows += known[name] if name in known else exam.take(candidate, name)
    places = [f"control {n}: {c.localization} {fitted(c)}".rstrip() for n, c in enumerate(refitted, start=1)]
    return Report(
        title=repr(edit),
        rows=tuple(rows),
        attacks=tuple(attack.name for attack in attacks),
        absent=exam.absent | ({} if gold else {"gold model": "audit(..., gold=hm)"}),
        notes=(*notes, *places, *_elsewhere(hm, edit)),
        seed=seed,
        basis=basis,
    )


def _known(reuse: Report | None, basis: tuple[object, ...]) -> Mapping[str, list[Row]]:
    """The untouched and the gold model's rows of an earlier report, if it was about the same."""
    if reuse is None:
        return {}
    names = ("model", "gold model", "facts", "attacks", "seed")
    for name, mine, other in zip(names, basis, reuse.basis or [None] * len(names), strict=True):
        if mine != other:
            raise MechUnlearnError(
                f"the report to reuse is about another {name}, so its rows cannot stand beside this edit; "
                "leave out reuse="
            )
    return {name: [row for row in reuse.rows if row.model == name] for name in (UNTOUCHED, GOLD)}


def _elsewhere(hm: HookedModel, edit: Edit) -> tuple[str, ...]:
    if edit.made_on and edit.made_on != hm.identity:
        return (
            f"the edit was made on another model ({edit.made_on}) than it was audited on ({hm.identity})",
        )
    return ()
