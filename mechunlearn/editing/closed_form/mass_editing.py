"""MEMIT: write many facts at once, spread over the matrices of several layers.

1. Every fact is run in several contexts. At the highest layer a vector δ is found for each fact that, added
   to the matrix's output at the last token of the subject, makes the model give the new answer (``values``).
   The target ``z`` is the residual stream that results after that layer.
2. From the lowest layer up, each with the changes of the layers below: the keys ``K`` are the layer's matrix
   inputs, averaged over contexts, and its share of the remaining difference is ``R = (Z - H) / layers left``.
3. ``Δ = R Kᵀ (λ C + K Kᵀ)⁻¹`` moves the values at the keys by ``R`` and preserves running text, which has the
   weight of λ keys with second moment ``C``. The highest layer takes all of the remaining difference.
4. With ``null_space``, ``Δ`` is restricted to the eigenvectors of ``C`` with eigenvalues below this number,
   and a plain ridge takes the place of ``λ C`` (AlphaEdit).

Differences, like keys, are means over contexts (the authors use the plain prompt's difference), so that as λ
approaches 0 the stream moves to ``z`` exactly. In families that normalise the MLP's output (Gemma-2), only
the direction of the output can be set: a single layer still reaches ``z`` in the plain prompt, several come
close.

Source: Meng et al., "Mass-Editing Memory in a Transformer" (2023); Fang et al., "AlphaEdit" (2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.closed_form.keys import KeyStatistics, exact, require_statistics
from mechunlearn.editing.closed_form.mlp_matrices import Memory, memories_in, value_change, written
from mechunlearn.editing.closed_form.prompt_contexts import Contexts, asked_in_contexts, forgotten
from mechunlearn.editing.closed_form.solving import solve
from mechunlearn.editing.closed_form.values import ValueSearch, find_values
from mechunlearn.editing.edits.algebra import Delta
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.errors import EditError
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.working_copy import working_copy

PREFIXES = ((5, 10),)
"""Five prefixes of ten tokens."""
NULL_WEIGHT = 10.0
"""The ridge of AlphaEdit."""


def memit(
    hm: HookedModel,
    localization: Localization,
    facts: Facts,
    *,
    statistics: KeyStatistics,
    target: str | Sequence[str] = "new",
    weight: float | int | None = None,
    null_space: float | int | None = None,
    prefixes: Sequence[str] | None = None,
    seed: int = 0,
    search: ValueSearch = ValueSearch(),  # noqa: B008
    batch_size: int = 64,
    progress: bool = True,
) -> Edit:
    """Write facts into the matrices of several layers.

    The edit has no recipe, because it was solved for, not trained; so an audit cannot refit it at other
    sites. For a control, call this function with the control's ``mlp.out`` sites. The edit's history holds
    the steps of the search for values.

    Args:
        hm: the model; it is not changed.
        localization: ``mlp.out`` of one or more layers, preferably adjacent ones.
        facts: the facts of the forget set are written; the other splits are not used.
        statistics: key statistics of all these sites, from ``key_statistics``.
        target: the new answer: a field of the facts, one text for all, or a text for each.
        weight: λ, the number of keys that running text counts as: the smaller it is, the more reliably the
            facts are written, and the more else changes. None for the number of neurons, at which an ordinary
            token's value moves half of the way (the authors use 15,000 for GPT-J, which has 16,384 neurons,
            and 20,000 for GPT-2 XL); with ``null_space`` None is 10, as in AlphaEdit.
        null_space: write only along eigenvectors of ``C`` with eigenvalues below this (AlphaEdit uses 0.02,
            in the units of its models' keys); None to write along all.
        prefixes: texts to put before the prompts, in addition to the plain prompt; None samples five of 10
            tokens.
        seed: seed of the prefixes.
        search: how values are searched for; see :class:`ValueSearch`.
        batch_size: rows per forward pass.
        progress: whether to show a bar.

    Raises:
        LocalizationError: there is no site.
        SiteError: a site is not of this model, or has no closed form.
        FactError: there is nothing to forget, a fact has no such answer, or the target is a field's name in
            another case.
        EditError: the statistics are not key statistics, do not cover a site, do not fit, are singular or
            have no null space; or the weight is negative, or `batch_size` not positive.
        ModelError: prefixes cannot be sampled.
        TrainingError: an option is out of range, the loss is not finite, or the answer does not depend on
            what is written at the subject.

    Warns:
        IdentityWarning: the statistics were computed on other weights.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> localization = mu.Localization(["L1.mlp.out", "L2.mlp.out"])
        >>> statistics = mu.closed_form.key_statistics(hm, localization, facts.text[:20], progress=False)
        >>> edit = mu.closed_form.memit(
        ...     hm, localization, facts.forget[:2], statistics=statistics, prefixes=[], progress=False,
        ...     search=mu.closed_form.ValueSearch(steps=2),
        ... )
        >>> len(edit.deltas)
        2

    Source: Meng et al. (2023) with the defaults of the authors' code for GPT-J; Fang et al. (2024).
    """
    matrices, forget = memories_in(hm, localization), forgotten(facts)
    positive(EditError, batch_size=batch_size)
    if weight is not None and not weight >= 0:
        raise EditError(f"weight is {weight!r}; give 0 or more, or None for the authors'")
    require_statistics(statistics)
    statistics.check(hm, matrices)
    with torch.inference_mode(False), torch.enable_grad():
        # Weights of its own, because each layer's keys are read after the layers below have changed.
        work = working_copy(hm, {m.weight: hm.params[m.weight].detach().clone() for m in matrices})
        contexts = asked_in_contexts(
            work, forget, target=target, prefixes=prefixes, lengths=PREFIXES, seed=seed
        )
        aim = _Aim(work, matrices[-1], contexts, batch_size)
        sizes = aim.sizes()
        value = find_values(
            work, matrices[-1], contexts, sizes, search, steps=25, bound=0.75,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        aim.set(value.deltas)
        deltas = []
        for index, memory in enumerate(matrices):
            keys, changes = aim.missing(memory, share=len(matrices) - index)
            keys, changes = keys.to(exact(hm)), changes.to(exact(hm))
            change = _change(statistics, memory, keys, changes, weight=weight, null_space=null_space)
            deltas.append(memory.delta(change, hm.params))
            _write(work, deltas[-1])
    return Edit(
        deltas=tuple(deltas),
        localization=localization,
        shapes={m.weight: tuple(hm.params[m.weight].shape) for m in matrices},
        made_on=hm.identity,
        history=value.history,
        step=value.history.step,
        arch=hm.arch,
    )


class _Aim:
    """The target of the residual stream after the highest layer, and the difference from it."""

    def __init__(self, work: HookedModel, top: Memory, contexts: Contexts, batch_size: int) -> None:
        self._work, self._top, self._contexts, self._batch_size = work, top, contexts, batch_size
        read = self._read(self._top.stream, self._top.values)
        self._stream, self._values = read[self._top.stream], read[self._top.values]
        self._written = written(work, self._top, self._values)

    def _read(self, *names: str) -> dict[str, Float[Tensor, "fact context width"]]:
        return self._contexts.at_subject(self._work.bridge, names, batch_size=self._batch_size)

    def sizes(self) -> Float[Tensor, " fact"]:
        """The norm that δ is measured by: of the stream, or of the values if a norm lies between the two."""
        no_norm = torch.equal(self._written, self._values)
        sizes: Tensor = (self._stream if no_norm else self._values).mean(1).norm(dim=1)
        return sizes

    def set(self, deltas: Float[Tensor, "fact d_model"]) -> None:
        """Set the target: the stream that results if δ is added to the highest layer's values."""
        after = written(self._work, self._top, self._values + deltas[:, None])
        self._target = self._stream + after - self._written

    def missing(
        self, memory: Memory, *, share: int
    ) -> tuple[Float[Tensor, "fact d_mlp"], Float[Tensor, "fact d_model"]]:
        """A layer's current keys, and the required change of its values; ``share`` counts the layers left."""
        read = self._read(memory.keys, memory.values, self._top.stream)
        difference = (self._target - read[self._top.stream]) / share
        changes = value_change(self._work, memory, read[memory.values], difference)
        return read[memory.keys].mean(1), changes.mean(1)


def _change(
    statistics: KeyStatistics,
    memory: Memory,
    keys: Float[Tensor, "fact d_mlp"],
    changes: Float[Tensor, "fact d_model"],
    *,
    weight: float | int | None,
    null_space: float | int | None,
) -> Float[Tensor, "d_model d_mlp"]:
    if null_space is None:
        through = statistics.weighed(memory.site, keys)
        return solve(keys, through, changes, weight=keys.shape[1] if weight is None else weight)
    through = statistics.freed(memory.site, keys, null_space)
    return solve(keys, through, changes, weight=NULL_WEIGHT if weight is None else weight)


@torch.no_grad()
def _write(work: HookedModel, delta: Delta) -> None:
    """Add a delta to a weight of the working copy, rounded as applying the edit would."""
    parameter = work.params[delta.slice.name]
    values = delta.values.to(parameter.device)
    parameter.copy_(delta.slice.add(parameter.to(values.dtype), values))
