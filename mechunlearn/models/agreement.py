"""Agreement of two results of the same computation, up to the rounding of their precision."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def close(actual: Float[Tensor, "..."], expected: Float[Tensor, "..."]) -> bool:
    """Whether two results agree up to rounding, by norms, since single half-precision entries vary."""
    scale = float(expected.double().norm()) + 1e-30
    error = float((actual.double() - expected.double()).norm())
    # A wrong result is off by a quarter or more; rounding in a few bfloat16 blocks by less than a hundredth.
    ulps = 2000 if actual.dtype in (torch.float32, torch.float64) else 16
    return error <= ulps * torch.finfo(actual.dtype).eps * scale
