"""Whether two results of the same computation agree, up to the rounding of their precision."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def close(found: Float[Tensor, "..."], wanted: Float[Tensor, "..."]) -> bool:
    """Agreement to rounding; half precision has so much of it that single entries say nothing."""
    scale, apart = float(wanted.double().norm()) + 1e-30, float((found.double() - wanted.double()).norm())
    # What is wrong is off by a quarter and more, a few bfloat16 blocks by less than a hundredth.
    many = 2000 if found.dtype in (torch.float32, torch.float64) else 16
    return apart <= many * torch.finfo(found.dtype).eps * scale
