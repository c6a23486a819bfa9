"""Means with intervals, by the percentile bootstrap over facts.

1. Draw as many facts as there are, with replacement, and take their mean; repeat this `samples` times.
2. The interval runs between the (1 - level)/2 and (1 + level)/2 quantiles of these means.
3. Two rows of a table are compared by their differences fact by fact. The interval of the mean difference is
   often far narrower than the intervals of the two rows suggest.

The interval shows how much the mean depends on the choice of facts. It is too short for a handful of facts,
and has no width where all agree: 32 hits of 32 give [1.00, 1.00].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its interval; NaN where they are undefined.

    Example:
        >>> str(Interval(0.84, 0.78, 0.9)), 0.8 in Interval(0.84, 0.78, 0.9)
        ('.84 [.78, .90]', True)
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.mean)} [{_short(self.low)}, {_short(self.high)}]"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def bootstrap_interval(
    values: Shaped[np.ndarray, "fact"] | Sequence[float | int],
    *,
    seed: int,
    level: float = 0.95,
    samples: int = 2000,
) -> Interval:
    """Return the mean of one value per fact, with its bootstrap interval from `samples` resampled means.

    One fact has a mean and NaN bounds; with none, the mean is NaN too. `level` is the share of resampled
    means inside the interval, between 0 and 1. ValueError if `level` or `samples` is out of range.

    Example:
        >>> str(bootstrap_interval([1, 1, 0, 1, 1, 1, 1, 1], seed=0))
        '.88 [.62, 1.00]'

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, as 0.95 does; not {level}")
    if samples < 1:
        raise ValueError(f"samples must be 1 or more, such as 2000; not {samples}")
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2:
        mean = float(data[0]) if len(data) else math.nan
        return Interval(mean, math.nan, math.nan)
    low, high = np.quantile(_means(data, seed, samples), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(data.mean()), float(low), float(high))


def paired_difference(
    first: Shaped[np.ndarray, "fact"] | Sequence[float | int],
    second: Shaped[np.ndarray, "fact"] | Sequence[float | int],
    *,
    seed: int,
    level: float = 0.95,
    samples: int = 2000,
) -> Interval:
    """Return the mean of `first` minus `second`, fact by fact, with its interval; see `bootstrap_interval`.

    Both hold one number for each of the same facts, in the same order; else ValueError is raised.

    Example:
        >>> str(paired_difference([1, 1, 1], [0, 0, 0], seed=0))
        '1.00 [1.00, 1.00]'
    """
    if len(first) != len(second):
        raise ValueError(
            f"first has {len(first)} values and second {len(second)}; give one per fact, the same in both"
        )
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap_interval(differences, seed=seed, level=level, samples=samples)


def _means(data: Float[np.ndarray, "fact"], seed: int, samples: int) -> Float[np.ndarray, "sample"]:
    # Resample in blocks, so that memory stays bounded for many facts.
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(data))
    sizes = [min(block, samples - start) for start in range(0, samples, block)]
    return np.concatenate(
        [data[rng.integers(0, len(data), (size, len(data)))].mean(axis=1) for size in sizes]
    )


def _short(value: float) -> str:
    """Two decimals without the zero before the point, as in tables of shares; a dash for NaN."""
    if math.isnan(value):
        return "–"
    # Only below 1, since "10.00" would become "1.00".
    text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.2f}"
    return text.replace("-.00", ".00") if text == "-.00" else text
