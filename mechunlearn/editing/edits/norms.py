"""How large the deltas of each site are, and of which rank.

1. The deltas are spread out over their parameters, and each site's slices are taken out of them.
2. The norm of a site is the Frobenius norm of all its deltas together.
3. The rank of a site is the largest numerical rank among its matrices: the number of singular values above a
   share of the largest one. A bias is a matrix of one column; a neuron has vectors alone, so at most rank 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.algebra import Delta, Shapes, dense
from mechunlearn.errors import EditError

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel


def norms(deltas: Sequence[Delta], shapes: Shapes, localization: Localization, hm: HookedModel) -> Scores:
    """The Frobenius norm of the deltas of every site; the model is only the table from sites to slices."""

    def norm(parts: Sequence[Tensor]) -> float:
        return float(torch.stack([part.double().norm() for part in parts]).norm()) if parts else 0.0

    title, unit = "How far each site was moved", "Frobenius norm"
    return _scores(norm, deltas, shapes, localization, hm, title=title, unit=unit)


def ranks(
    deltas: Sequence[Delta],
    shapes: Shapes,
    localization: Localization,
    hm: HookedModel,
    *,
    tolerance: float | None,
) -> Scores:
    """The largest numerical rank among the delta matrices of every site.

    ``tolerance`` is the share of a matrix's largest singular value up to which others count as zero, from 0
    to below 1, else an ``EditError``; None for the longer side times the precision of the matrix's type.
    """
    if tolerance is not None and not 0 <= tolerance < 1:
        raise EditError(f"tolerance is {tolerance!r}; give a share from 0 to below 1, such as 0.01")

    def rank(parts: Sequence[Tensor]) -> float:
        return float(max((_rank(part, tolerance) for part in parts), default=0))

    title, unit = "In how many directions each site was moved", "rank"
    return _scores(rank, deltas, shapes, localization, hm, title=title, unit=unit)


def _rank(delta: Float[Tensor, "..."], tolerance: float | None) -> int:
    if not bool(delta.any()):
        return 0
    if 1 in delta.shape or delta.ndim == 1:
        return 1
    # In float64, so that the decomposition's own rounding does not count as rank.
    values = torch.linalg.svdvals(delta.double())
    share = max(delta.shape) * torch.finfo(delta.dtype).eps if tolerance is None else tolerance
    return int((values > share * values[0]).sum())


def _scores(
    measure: Callable[[Sequence[Tensor]], float],
    deltas: Sequence[Delta],
    shapes: Shapes,
    localization: Localization,
    hm: HookedModel,
    *,
    title: str,
    unit: str,
) -> Scores:
    sites = tuple(localization)
    spread = dense(deltas, shapes)
    by_site = (
        [part.of(spread[part.name]) for part in hm.slices([site]) if part.name in spread] for site in sites
    )
    return Scores.of(
        torch.tensor([measure(parts) for parts in by_site]),
        sites,
        dims=("site",),
        params={site: hm.size([site]) for site in sites},
        total_params=hm.sites.total,
        title=title,
        unit=unit,
    )
