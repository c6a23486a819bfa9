"""Spend a budget of parameters on sites, in order.

1. A site is taken while it fits.
2. The first that does not fit is broken into its heads or neurons, and as many of them as fit are taken in a
   random order.
3. If the gap still exceeds the tolerance (a head can be larger than what is left), the next site is tried in
   the same way; otherwise the selection ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from mechunlearn.core.sites.site import Site

if TYPE_CHECKING:
    from mechunlearn.core.sites.model_sites import ModelSites

TOLERANCE = 0.05
"""Two localizations are of equal size when their parameters agree within this share."""


def spend(
    ranked: Iterable[Site], params: int, *, sites: ModelSites, random: np.random.Generator, slack: int = 0
) -> list[Site]:
    """Choose sites, the best first, whose parameters add up to the budget as nearly as the order allows.

    ``random`` orders the heads or neurons of a component that does not fit. The budget may be exceeded by up
    to ``slack`` parameters where that comes nearer to it. SiteError if a site is not of this model.
    """
    chosen: list[Site] = []
    left = params
    for site in ranked:
        fits = _fits(sites.size([site]), left, slack)
        for piece in [site] if fits else _shuffled(sites.pieces(site), random):
            size = sites.size([piece])
            if _fits(size, left, slack):
                chosen.append(piece)
                left -= size
        if not fits and left <= params * TOLERANCE:
            break
    return chosen


def _fits(size: int, left: int, slack: int) -> bool:
    # Going over is worth it only where it ends nearer to the budget than stopping would.
    return size <= left or (size - left <= slack and size - left < left)


def _shuffled(pieces: tuple[Site, ...], random: np.random.Generator) -> Iterator[Site]:
    return (pieces[index] for index in random.permutation(len(pieces)))


def gap(size: int, target: int) -> str:
    """Describe a size and its relative distance from a target.

    Example:
        >>> gap(270_336, 269_500)
        '270,336 parameters, gap +0.3 %'
    """
    # Adding zero turns a rounded -0.0 into 0.0.
    return f"{size:,} parameters, gap {round(100 * (size / target - 1), 1) + 0.0:+.1f} %"
