"""ROME: write one fact into one matrix, by a change of rank one.

1. The fact is run in several contexts. Its key ``k*`` is the matrix's input at the last token of the subject,
   averaged over contexts; the mean output there is ``v₀ = W k*`` (plus the bias).
2. A vector δ is found that, added to this output, makes the model give the new answer (``values``):
   ``v* = v₀ + δ``.
3. ``W ← W + (v* - v₀) uᵀ / (uᵀ k*)`` with ``u = C⁻¹ k*``: of all changes that map ``k*`` to ``v*``, the one
   that changes the values of running text least.

The same key is used throughout. The authors' code uses the mean key for ``u`` and the plain prompt's key for
the residual and the denominator; this mismatch is the reason why single edits can break a model.

Source: Meng et al., "Locating and Editing Factual Associations in GPT" (2022); the single key is r-ROME's,
Gupta et al., "Rebuilding ROME" (2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.closed_form.keys import KeyStatistics, exact, require_statistics
from mechunlearn.editing.closed_form.mlp_matrices import memories_in
from mechunlearn.editing.closed_form.prompt_contexts import asked_in_contexts, forgotten
from mechunlearn.editing.closed_form.solving import solve
from mechunlearn.editing.closed_form.values import ValueSearch, find_values
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.errors import EditError, FactError, LocalizationError
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.working_copy import working_copy

PREFIXES = ((10, 5), (10, 10))
"""Ten prefixes of five tokens, and ten of ten."""


def rome(
    hm: HookedModel,
    localization: Localization,
    facts: Facts,
    *,
    statistics: KeyStatistics,
    target: str | Sequence[str] = "new",
    prefixes: Sequence[str] | None = None,
    seed: int = 0,
    search: ValueSearch = ValueSearch(),  # noqa: B008
    batch_size: int = 64,
    progress: bool = True,
) -> Edit:
    """Write one fact into one matrix.

    The edit has no recipe, because it was solved for, not trained; so an audit cannot refit it at other
    sites. For a control, call this function with the control's ``mlp.out``. The edit's history holds the
    steps of the search for the value.

    Args:
        hm: the model; it is not changed.
        localization: one ``mlp.out``, in an early or middle layer, or as found by ``fact_lookup``.
        facts: one fact to forget; the other splits are not used.
        statistics: key statistics of that site, from ``key_statistics``.
        target: the new answer: a field of the fact, or any other text, such as ``"nobody"``; a list of one
            text is never taken for a field.
        prefixes: texts to put before the prompt, in addition to the plain prompt; None samples ten of 5
            tokens and ten of 10, as the authors do.
        seed: seed of the prefixes.
        search: how values are searched for; see :class:`ValueSearch`.
        batch_size: rows per forward pass.
        progress: whether to show a bar.

    Raises:
        LocalizationError: it is not one site.
        SiteError: the site is not of this model, or has no closed form.
        FactError: it is not one fact, it has no such answer, or the target is a field's name in another case.
        EditError: the statistics are not key statistics, do not cover the site, do not fit, or are singular;
            or `batch_size` is not positive.
        ModelError: prefixes cannot be sampled.
        TrainingError: an option is out of range, the loss is not finite, or the answer does not depend on
            what is written at the subject.

    Warns:
        IdentityWarning: the statistics were computed on other weights.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> localization = mu.Localization(["L1.mlp.out"])
        >>> statistics = mu.closed_form.key_statistics(hm, localization, facts.text[:20], progress=False)
        >>> edit = mu.closed_form.rome(
        ...     hm, localization, facts.forget[:1], statistics=statistics, prefixes=[], progress=False
        ... )
        >>> [delta.slice.name for delta in edit.deltas]
        ['model.layers.1.mlp.down_proj.weight']

    Source: Meng et al. (2022) with the defaults of the authors' code; Gupta et al. (2024).
    """
    matrices, forget = memories_in(hm, localization), forgotten(facts)
    if len(matrices) > 1:
        raise LocalizationError(
            f"rome writes into one matrix, and the localization has {len(matrices)}; give one of them, as in "
            f'Localization(["{matrices[0].site}"]), or spread the fact over all with memit'
        )
    if len(forget) > 1:
        raise FactError(
            f"rome writes one fact, and there are {len(forget)} to forget; give one, as in "
            "facts.forget[:1], or write all at once with memit"
        )
    positive(EditError, batch_size=batch_size)
    (memory,) = matrices
    require_statistics(statistics)
    statistics.check(hm, matrices)
    with torch.inference_mode(False), torch.enable_grad():
        work = working_copy(hm)
        contexts = asked_in_contexts(
            work, forget, target=target, prefixes=prefixes, lengths=PREFIXES, seed=seed
        )
        read = contexts.at_subject(work.bridge, [memory.keys, memory.values], batch_size=batch_size)
        keys, values = (read[name].mean(1).to(exact(hm)) for name in (memory.keys, memory.values))
        value = find_values(
            work, memory, contexts, values.norm(dim=1), search, steps=20, bound=4.0,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        through = statistics.weighed(memory.site, keys)
        change = solve(keys, through, value.deltas.to(keys))
    delta = memory.delta(change, hm.params)
    return Edit(
        deltas=(delta,),
        localization=localization,
        shapes={memory.weight: tuple(hm.params[memory.weight].shape)},
        made_on=hm.identity,
        history=value.history,
        step=value.history.step,
        arch=hm.arch,
    )
