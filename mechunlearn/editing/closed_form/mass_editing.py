"""MEMIT: write many facts at once, spread over the matrices of several layers.

1. Every fact is asked in several contexts. At the highest of the layers a δ is found for each that, added
   to what the matrix puts out at the last token of the subject, makes the model say the new answer
   (``values``). So ``z`` is wanted: the residual stream after that layer as it would then be.
2. From the lowest layer up, with what the layers before have already changed: keys ``K`` are the means over
   contexts of what the layer's matrix reads, and its share of what is still missing is
   ``R = (Z - H) / layers left``.
3. ``Δ = R Kᵀ (λ C + K Kᵀ)⁻¹``: values move by ``R`` at the keys, and running text, which counts as λ keys
   with second moment ``C``, is left as it is. The highest layer takes all that is left.
4. With ``null_space``, ``Δ`` is kept to the directions that running text hardly uses, eigenvectors of ``C``
   with eigenvalues below it, where a plain ridge takes the place of ``λ C`` (AlphaEdit).

Residuals, like keys, are means over contexts (the authors take the plain prompt's residual), so that as λ
goes to 0 the stream moves to ``z`` exactly. In families that norm what an MLP writes (Gemma-2), only
directions of it can be set: a single layer still reaches ``z`` in the plain prompt, several come near it.

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

    The edit has no recipe: it was solved for, not trained, so an audit cannot refit it elsewhere by itself;
    call this again with the control's ``mlp.out`` sites. Its history are the steps of the search for values.

    Args:
        hm: the model, which stays as it is.
        localization: ``mlp.out`` of one layer or more, best of neighbouring ones.
        facts: the facts to forget are written; the other splits are not read.
        statistics: of all these sites, from ``key_statistics``.
        target: what to answer: a field of the facts, one text for all, or a text for each.
        weight: λ, as how many keys running text counts beside the facts: the smaller it is, the more surely
            the facts are written, and the more else moves. None for as many as there are neurons, at which
            an ordinary token's value would move half the way (the authors take 15,000 for GPT-J, which has
            16,384 neurons, and 20,000 for GPT-2 XL); with ``null_space`` for 10, as in AlphaEdit.
        null_space: write only along eigenvectors of ``C`` with eigenvalues below this (AlphaEdit takes 0.02,
            in the units of its models' keys); None to write along all.
        prefixes: what to say before the prompts, beside nothing at all; None samples five of 10 tokens.
        seed: of that sampling.
        search: how values are searched for; see :class:`ValueSearch`.
        batch_size: rows per forward pass.
        progress: whether to show a bar.

    Raises:
        LocalizationError: there is no site.
        SiteError: a site is not of this model, or has no closed form.
        FactError: there is nothing to forget, a fact has no such answer, or the target is a field's name in
            other letters.
        EditError: the statistics are none, do not cover a site, do not fit, are singular or have no null
            space; or the weight is negative.
        ModelError: prefixes cannot be sampled.
        TrainingError: an option is out of range, the loss is not finite, or what is written at the subject
            does not reach the answer.

    Warns:
        IdentityWarning: the statistics were made on other weights.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> place = mu.Localization(["L1.mlp.out", "L2.mlp.out"])
        >>> known = mu.closed_form.key_statistics(hm, place, facts.text[:20], progress=False)
        >>> two = facts.forget[:2]
        >>> edit = mu.closed_form.memit(
        ...     hm, place, two, statistics=known, prefixes=[], progress=False,
        ...     search=mu.closed_form.ValueSearch(steps=2),
        ... )
        >>> len(edit.deltas)
        2

    Source: Meng et al. (2023) with the defaults of the authors' code for GPT-J; Fang et al. (2024).
    """
    found, chosen = memories_in(hm, localization), forgotten(facts)
    positive(EditError, batch_size=batch_size)
    if weight is not None and not weight >= 0:
        raise EditError(f"weight is {weight!r}; give 0 or more, or None for the authors'")
    require_statistics(statistics)
    statistics.check(hm, found)
    with torch.inference_mode(False), torch.enable_grad():
        work = working_copy(hm, {m.weight: hm.params[m.weight].detach().clone() for m in found})
        contexts = asked_in_contexts(
            work, chosen, target=target, prefixes=prefixes, lengths=PREFIXES, seed=seed
        )
        aim = _Aim(work, found, contexts, batch_size)
        sizes = aim.sizes()
        value = find_values(
            work, found[-1], contexts, sizes, search, steps=25, bound=0.75,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        aim.set(value.deltas)
        deltas = []
        for place, memory in enumerate(found):
            keys, changes = aim.missing(memory, share=len(found) - place)
            keys, changes = keys.to(exact(hm)), changes.to(exact(hm))
            change = _change(statistics, memory, keys, changes, weight=weight, null_space=null_space)
            deltas.append(memory.delta(change, hm.params))
            _write(work, deltas[-1])
    return Edit(
        deltas=tuple(deltas),
        localization=localization,
        shapes={m.weight: tuple(hm.params[m.weight].shape) for m in found},
        made_on=hm.identity,
        history=value.history,
        step=value.history.step,
        arch=hm.arch,
    )


class _Aim:
    """Where the residual stream after the highest layer should be, and what is missing of it."""

    def __init__(
        self, work: HookedModel, found: Sequence[Memory], contexts: Contexts, batch_size: int
    ) -> None:
        self._work, self._top, self._contexts, self._batch_size = work, found[-1], contexts, batch_size
        read = self._read(self._top.stream, self._top.values)
        self._stream, self._values = read[self._top.stream], read[self._top.values]
        self._before = written(work, self._top, self._values)

    def _read(self, *names: str) -> dict[str, Float[Tensor, "fact context width"]]:
        return self._contexts.at_subject(self._work.bridge, names, batch_size=self._batch_size)

    def sizes(self) -> Float[Tensor, " fact"]:
        """How long what δ is added to is: the stream, or the values where a norm comes between."""
        plain = torch.equal(self._before, self._values)
        sizes: Tensor = (self._stream if plain else self._values).mean(1).norm(dim=1)
        return sizes

    def set(self, deltas: Float[Tensor, "fact d_model"]) -> None:
        """Aim at the stream as it is with δ added to the highest layer's values."""
        after = written(self._work, self._top, self._values + deltas[:, None])
        self._wanted = self._stream + after - self._before

    def missing(
        self, memory: Memory, *, share: int
    ) -> tuple[Float[Tensor, "fact d_mlp"], Float[Tensor, "fact d_model"]]:
        """A layer's keys as they are now, and what its values should change by."""
        read = self._read(memory.keys, memory.values, self._top.stream)
        left = (self._wanted - read[self._top.stream]) / share
        changes = value_change(self._work, memory, read[memory.values], left)
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
    """What one layer's matrix changes by."""
    if null_space is None:
        through = statistics.weighed(memory.site, keys)
        return solve(keys, through, changes, weight=keys.shape[1] if weight is None else weight)
    through = statistics.freed(memory.site, keys, null_space)
    return solve(keys, through, changes, weight=NULL_WEIGHT if weight is None else weight)


@torch.no_grad()
def _write(work: HookedModel, delta: Delta) -> None:
    """Add a delta to our own copy of a weight, rounded as applying the edit would."""
    held = work.params[delta.slice.name]
    values = delta.values.to(held.device)
    held.copy_(delta.slice.add(held.to(values.dtype), values))
