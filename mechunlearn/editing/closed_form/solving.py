"""The one equation behind ROME, MEMIT and AlphaEdit.

Wanted is a change ``Δ`` of a matrix that moves its values at the keys ``k₁ … kₙ`` by ``r₁ … rₙ`` and
elsewhere as little as can be. With ``A k`` what a key is *answered through* (``C⁻¹ k``, or ``k``'s part in
the null space), every one of the three is::

    Δ = R (λ·1 + Kᵀ A K)⁻¹ (A K)ᵀ

1. ``A = C⁻¹``, one key, ``λ = 0``: ROME, ``Δ = r (C⁻¹k)ᵀ / (kᵀ C⁻¹ k)``, the least change in the sense of
   ``tr(Δ C Δᵀ)`` for which ``Δ k = r`` exactly.
2. ``A = C⁻¹``, many keys: MEMIT, ``R Kᵀ (λ C + K Kᵀ)⁻¹``, by the push-through identity.
3. ``A = P``: AlphaEdit, ``R Kᵀ P (P K Kᵀ P + λ·1)⁻¹``.

The inverse is of as many rows as there are facts, and has a limit as λ goes to 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SAME = 1e-10
"""Eigenvalues below this share of the largest are rounding: keys that differ so little are the same key."""


def solve(
    keys: Float[Tensor, "fact d_mlp"],
    through: Float[Tensor, "fact d_mlp"],
    changes: Float[Tensor, "fact d_model"],
    *,
    weight: float | int = 0.0,
) -> Float[Tensor, "d_model d_mlp"]:
    """The change of a matrix that moves the values of some keys.

    Keys that are the same, as those of two facts about one subject are, get the mean of what is asked of
    them as λ goes to 0.

    Args:
        keys: one per fact, in float64.
        through: ``A k`` of each.
        changes: what each value should move by.
        weight: λ, how much what is kept counts beside the facts.

    Example:
        >>> keys = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
        >>> solve(keys, keys, torch.tensor([[1.0, 3.0]], dtype=torch.float64)).tolist()
        [[0.5, 0.0], [1.5, 0.0]]
    """
    gram = keys @ through.T
    gram = (gram + gram.T) / 2 + weight * torch.eye(len(keys)).to(gram)
    inverse: Tensor = torch.linalg.pinv(gram, rtol=SAME, hermitian=True)
    return changes.T @ inverse @ through
