"""The equation that ROME, MEMIT and AlphaEdit share.

A change ``Δ`` of a matrix should move its values at the keys ``k₁ … kₙ`` by ``r₁ … rₙ`` and all other values
as little as possible. For a linear map ``A``, which is ``C⁻¹`` or the projection ``P`` on the null space, all
three use::

    Δ = R (λ·1 + Kᵀ A K)⁻¹ (A K)ᵀ

1. ``A = C⁻¹``, one key, ``λ = 0``: ROME, ``Δ = r (C⁻¹k)ᵀ / (kᵀ C⁻¹ k)``, the change with the smallest
   ``tr(Δ C Δᵀ)`` for which ``Δ k = r`` exactly.
2. ``A = C⁻¹``, many keys: MEMIT, ``R Kᵀ (λ C + K Kᵀ)⁻¹``, by the push-through identity.
3. ``A = P``: AlphaEdit, ``R Kᵀ P (P K Kᵀ P + λ·1)⁻¹``.

The inverse has one row per fact, and a limit as λ approaches 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SAME = 1e-10
"""Eigenvalues below this fraction of the largest count as 0: keys that differ so little are identical."""


def solve(
    keys: Float[Tensor, "fact d_mlp"],
    through: Float[Tensor, "fact d_mlp"],
    changes: Float[Tensor, "fact d_model"],
    *,
    weight: float | int = 0.0,
) -> Float[Tensor, "d_model d_mlp"]:
    """The change of a matrix that moves the values at ``keys`` by ``changes``; all arguments are in float64.

    ``through`` is ``A k`` of each key, ``weight`` is λ. As λ approaches 0, identical keys, such as those of
    two facts about one subject, get the mean of their changes.

    Example:
        >>> keys = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
        >>> solve(keys, keys, torch.tensor([[1.0, 3.0]], dtype=torch.float64)).tolist()
        [[0.5, 0.0], [1.5, 0.0]]
    """
    gram = keys @ through.T
    # Symmetric but for rounding; ``hermitian=True`` would read one triangle only.
    gram = (gram + gram.T) / 2 + weight * torch.eye(len(keys)).to(gram)
    # The pseudo-inverse is the limit for λ = 0, where identical keys make the matrix singular.
    inverse: Tensor = torch.linalg.pinv(gram, rtol=SAME, hermitian=True)
    return changes.T @ inverse @ through
