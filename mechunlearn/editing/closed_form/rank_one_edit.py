"""ROME: write one fact into one matrix, by a change of rank one.

1. The fact is asked in several contexts. Its key ``k*`` is the mean over them of what the matrix reads at
   the last token of the subject; ``v₀ = W k*`` (with the bias) is then the mean of what it puts out there.
2. A δ is found that, added to these values, makes the model say the new answer (``values``):
   ``v* = v₀ + δ``.
3. ``W ← W + (v* - v₀) uᵀ / (uᵀ k*)`` with ``u = C⁻¹ k*``: of all changes that take ``k*`` to ``v*``, the one
   that disturbs running text least.

One key serves throughout. The authors' code takes the mean key for ``u`` and the plain prompt's for the
residual and the denominator; that mismatch is what makes single edits break a model.

Source: Meng et al., "Locating and Editing Factual Associations in GPT" (2022); the one key is r-ROME's,
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

    The edit has no recipe: it was solved for, not trained, so an audit cannot refit it elsewhere by itself;
    call this again with the control's ``mlp.out``. Its history are the steps of the search for the value.

    Args:
        hm: the model, which stays as it is.
        localization: one ``mlp.out``; early to middle layers, or where ``fact_lookup`` points.
        facts: one fact to forget; the other splits are not read.
        statistics: of that site, from ``key_statistics``.
        target: what to answer: a field of the fact, or any other text, such as ``"nobody"``; a list of one
            text is never taken for a field.
        prefixes: what to say before the prompt, beside nothing at all; None samples ten of 5 tokens and ten
            of 10, as the authors do.
        seed: of that sampling.
        search: how values are searched for; see :class:`ValueSearch`.
        batch_size: rows per forward pass.
        progress: whether to show a bar.

    Raises:
        LocalizationError: it is not one site.
        SiteError: the site is not of this model, or has no closed form.
        FactError: it is not one fact, it has no such answer, or the target is a field's name in other
            letters.
        EditError: the statistics are none, do not cover the site, do not fit, or are singular.
        ModelError: prefixes cannot be sampled.
        TrainingError: an option is out of range, the loss is not finite, or what is written at the subject
            does not reach the answer.

    Warns:
        IdentityWarning: the statistics were made on other weights.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> place = mu.Localization(["L1.mlp.out"])
        >>> known = mu.closed_form.key_statistics(hm, place, facts.text[:20], progress=False)
        >>> one = facts.forget[:1]
        >>> edit = mu.closed_form.rome(hm, place, one, statistics=known, prefixes=[], progress=False,
        ...                              search=mu.closed_form.ValueSearch(steps=2))
        >>> [delta.slice.name for delta in edit.deltas]
        ['model.layers.1.mlp.down_proj.weight']

    Source: Meng et al. (2022) with the defaults of the authors' code; Gupta et al. (2024).
    """
    found, chosen = memories_in(hm, localization), forgotten(facts)
    if len(found) > 1:
        raise LocalizationError(
            f"rome writes into one matrix, and the localization has {len(found)}; give one of them, as in "
            f'Localization(["{found[0].site}"]), or spread the fact over all with memit'
        )
    if len(chosen) > 1:
        raise FactError(
            f"rome writes one fact, and there are {len(chosen)} to forget; give one, as in "
            "facts.forget[:1], or write all at once with memit"
        )
    positive(EditError, batch_size=batch_size)
    (memory,) = found
    require_statistics(statistics)
    statistics.check(hm, found)
    with torch.inference_mode(False), torch.enable_grad():
        work = working_copy(hm)
        contexts = asked_in_contexts(
            work, chosen, target=target, prefixes=prefixes, lengths=PREFIXES, seed=seed
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
