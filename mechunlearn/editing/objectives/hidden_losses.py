"""The losses on hidden states that the objectives are made of: pure functions of the model's outputs.

1. The states are the residual stream after one block, at the requested positions; none is padding.
2. They are compared, in float32, with a target vector or with the unedited model's states at the same
   positions. Distances are averaged over dimensions, then positions, then examples.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechunlearn.editing.objectives.requests import Outputs
from mechunlearn.editing.objectives.rows import labeled, required, row_means, upcast

States = Float[Tensor, "token d_model"]


def steering(output: Outputs, target: Float[Tensor, " d_model"]) -> Float[Tensor, ""]:
    """The mean squared distance of the hidden states from one target vector."""
    output = labeled(output)
    distance = (_states(output) - target.to(output.labels.device)).square().mean(-1)
    return row_means(distance, output.row).mean()


def drift(output: Outputs) -> Float[Tensor, ""]:
    """The mean squared distance of the hidden states from the unedited model's (``reference_hidden``)."""
    output = labeled(output)
    distance = (_states(output) - _reference(output)).square().mean(-1)
    return row_means(distance, output.row).mean()


def alignment(output: Outputs) -> Float[Tensor, ""]:
    """The mean of ``max(0, cos(h, h_ref))`` over positions: 0 where a state no longer points as before."""
    output = labeled(output)
    return torch.cosine_similarity(_states(output), _reference(output), dim=-1).relu().mean()


def displacement(output: Outputs) -> Float[Tensor, ""]:
    """The mean of ``||h - h_ref||`` over positions."""
    output = labeled(output)
    distance: Tensor = torch.linalg.vector_norm(_states(output) - _reference(output), dim=-1)
    return distance.mean()


def typical_norm(output: Outputs) -> float:
    """The median norm of the hidden states; some first tokens have huge norms, which would distort a mean."""
    states = _states(labeled(output)).detach()
    return float(torch.linalg.vector_norm(states, dim=-1).median())


def _states(output: Outputs) -> States:
    return upcast(required(output.hidden, "hidden states", "hidden=a block"))


def _reference(output: Outputs) -> States:
    what = "the unedited model's hidden states"
    return upcast(required(output.reference_hidden, what, "hidden=a block, reference='hidden'"))
