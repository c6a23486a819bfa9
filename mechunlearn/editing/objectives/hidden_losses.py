"""The loss functions on hidden states beneath the objectives: pure functions of what was read.

1. The states are the residual stream after one block, at the positions read; padding is not among them.
2. They are compared in float32, with a target or with the unedited model's states at the same positions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.editing.objectives.requests import Outputs
from mechunlearn.editing.objectives.rows import asked, given, row_means, wide

States = Float[Tensor, "token d_model"]


def steering(output: Outputs, target: Float[Tensor, " d_model"]) -> Float[Tensor, ""]:
    """Mean squared distance from one vector: over dimensions, then positions, then examples.

    Args:
        output: hidden states and examples.
        target: where every state is to go.
    """
    output = asked(output)
    distance = (_states(output) - target.to(output.labels.device)).square().mean(-1)
    return row_means(distance, output.row).mean()


def drift(output: Outputs) -> Float[Tensor, ""]:
    """Mean squared distance from the unedited model's states: over dimensions, positions, then examples.

    Args:
        output: hidden states, the unedited model's, and examples.
    """
    output = asked(output)
    distance = (_states(output) - _before(output)).square().mean(-1)
    return row_means(distance, output.row).mean()


def alignment(output: Outputs) -> Float[Tensor, ""]:
    """Mean of ``max(0, cos(h, h_ref))`` over positions: 0 where a state no longer points as it did.

    Args:
        output: hidden states and the unedited model's.
    """
    output = asked(output)
    return torch.cosine_similarity(_states(output), _before(output), dim=-1).relu().mean()


def displacement(output: Outputs) -> Float[Tensor, ""]:
    """Mean of ``||h - h_ref||`` over positions.

    Args:
        output: hidden states and the unedited model's.
    """
    output = asked(output)
    moved: Tensor = torch.linalg.vector_norm(_states(output) - _before(output), dim=-1)
    return moved.mean()


def typical_norm(output: Outputs) -> float:
    """The median norm of the states, which the huge ones of some first tokens do not sway.

    Args:
        output: hidden states.
    """
    states = _states(asked(output)).detach()
    return float(torch.linalg.vector_norm(states, dim=-1).median())


def _states(output: Outputs) -> States:
    return wide(given(output.hidden, "hidden states", "hidden=a block"))


def _before(output: Outputs) -> States:
    what = "the unedited model's hidden states"
    return wide(given(output.reference_hidden, what, "hidden=a block, reference='hidden'"))
