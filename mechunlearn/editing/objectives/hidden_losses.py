"""The loss functions on hidden states beneath the objectives: pure functions of what was read.

1. The states are the residual stream after one block, at the positions read; padding is not among them.
2. They are compared in float32, with a target or with the unedited model's states at the same positions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.editing.objectives.reading import Outputs
from mechunlearn.editing.objectives.rows import asked, given, row_means, wide

States = Float[Tensor, "token d_model"]


def steering(reading: Outputs, target: Float[Tensor, " d_model"]) -> Float[Tensor, ""]:
    """Mean squared distance from one vector: over dimensions, then positions, then examples.

    Args:
        reading: hidden states and examples.
        target: where every state is to go.
    """
    reading = asked(reading)
    distance = (_states(reading) - target.to(reading.labels.device)).square().mean(-1)
    return row_means(distance, reading.row).mean()


def drift(reading: Outputs) -> Float[Tensor, ""]:
    """Mean squared distance from the unedited model's states: over dimensions, positions, then examples.

    Args:
        reading: hidden states, the unedited model's, and examples.
    """
    reading = asked(reading)
    distance = (_states(reading) - _before(reading)).square().mean(-1)
    return row_means(distance, reading.row).mean()


def alignment(reading: Outputs) -> Float[Tensor, ""]:
    """Mean of ``max(0, cos(h, h_ref))`` over positions: 0 where a state no longer points as it did.

    Args:
        reading: hidden states and the unedited model's.
    """
    reading = asked(reading)
    return torch.cosine_similarity(_states(reading), _before(reading), dim=-1).relu().mean()


def displacement(reading: Outputs) -> Float[Tensor, ""]:
    """Mean of ``||h - h_ref||`` over positions.

    Args:
        reading: hidden states and the unedited model's.
    """
    reading = asked(reading)
    moved: Tensor = torch.linalg.vector_norm(_states(reading) - _before(reading), dim=-1)
    return moved.mean()


def typical_norm(reading: Outputs) -> float:
    """The median norm of the states, which the huge ones of some first tokens do not sway.

    Args:
        reading: hidden states.
    """
    states = _states(asked(reading)).detach()
    return float(torch.linalg.vector_norm(states, dim=-1).median())


def _states(reading: Outputs) -> States:
    return wide(given(reading.hidden, "hidden states", "hidden=a block"))


def _before(reading: Outputs) -> States:
    what = "the unedited model's hidden states"
    return wide(given(reading.reference_hidden, what, "hidden=a block, reference='hidden'"))
