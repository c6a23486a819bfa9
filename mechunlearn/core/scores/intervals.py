"""Means over facts with bootstrap intervals, for many scores at once.

1. Samples are averaged, so that a fact is one number; facts that are NaN for a site are left out.
2. All sites are resampled with the same draws of facts. Drawing facts is weighting them, so a resampled mean
   of all sites is one product of matrices.
3. The interval runs between the quantiles of the resampled means, as in ``mechunlearn.core.statistics``, and
   its numbers are those of ``bootstrap_interval`` called for every site with the same seed. TransformerLens'
   ``PatchingResult.bootstrap_ci`` takes the same interval over the examples of a batch.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechunlearn.errors import ScoresError

if TYPE_CHECKING:
    import pandas as pd

_BLOCK = 1 << 22


def intervals(values: xr.DataArray, *, level: float, seed: int, samples: int) -> pd.DataFrame:
    """Tabulate means and intervals of scores without ``sample``; see ``Scores.intervals``."""
    if not 0 < level < 1:
        raise ScoresError(f"level must lie between 0 and 1, as 0.95 does; not {level}")
    if samples < 1:
        raise ScoresError(f"samples must be 1 or more, such as 2000; not {samples}")
    facts = values.transpose("fact", ...)
    flat = facts.values.reshape(facts.sizes["fact"], -1)
    table = facts.isel(fact=0, drop=True).to_dataframe(name="mean").reset_index()
    mean, low, high = np.full((3, flat.shape[1]), np.nan)
    scored = ~np.isnan(flat)
    # Sites that miss the same facts are resampled together.
    patterns, group = np.unique(scored, axis=1, return_inverse=True)
    for pattern, present in enumerate(patterns.T):
        cells = np.flatnonzero(group.ravel() == pattern)
        data = flat[present][:, cells]
        if len(data):
            mean[cells] = data.mean(axis=0)
        if len(data) > 1:
            low[cells], high[cells] = _bounds(data, level, seed, samples)
    return table.assign(mean=mean, low=low, high=high, facts=scored.sum(axis=0))


def _bounds(
    data: Float[np.ndarray, "fact cell"], level: float, seed: int, samples: int
) -> Float[np.ndarray, "end cell"]:
    # A bounded number of cells at a time, so that memory stays bounded.
    step = max(1, _BLOCK // samples)
    ends = [(1 - level) / 2, (1 + level) / 2]
    blocks = [data[:, start : start + step] for start in range(0, data.shape[1], step)]
    return np.concatenate([np.quantile(_means(b, seed, samples), ends, axis=0) for b in blocks], axis=1)


def _means(data: Float[np.ndarray, "fact cell"], seed: int, samples: int) -> Float[np.ndarray, "sample cell"]:
    rng, count = np.random.default_rng(seed), len(data)
    block = max(1, _BLOCK // count)
    means = []
    for start in range(0, samples, block):
        size = min(block, samples - start)
        # Shifted by its row, every resample has its own range of bins, so one bincount counts them all.
        drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        means.append(weights @ data / count)
    return np.concatenate(means)
