"""Helpers of the losses: labelled positions, sums over examples, and sufficient precision.

1. Positions with a negative label (-100) are dropped before a loss is computed, because a negative index
   would silently select an entry from the end of the vocabulary.
2. Half-precision values are converted to float32.
3. Positions of all examples lie along one axis; for sums over an answer they become one row per example.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mechunlearn.editing.objectives.requests import Outputs
from mechunlearn.errors import TrainingError


def labeled(output: Outputs) -> Outputs:
    """The outputs at positions that have a label; raises TrainingError if there are none.

    Example:
        >>> from mechunlearn.editing.objectives.rows import labeled
        >>> labels = torch.tensor([1, -100])
        >>> labeled(mu.objectives.Outputs(torch.zeros(2, 3), labels, torch.tensor([0, 0]))).labels
        tensor([1])
    """
    mask = output.labels >= 0
    if not bool(mask.any()):
        raise TrainingError(
            "a loss was asked for no position at all: no label is a token, or the batch is empty"
        )
    if bool(mask.all()):
        return output
    tensors = {f.name: getattr(output, f.name) for f in fields(output)}
    # Logits that were not requested have no rows, so the mask would not fit them.
    return replace(output, **{
        name: tensor[mask]
        for name, tensor in tensors.items()
        if tensor is not None and len(tensor) == len(mask)
    })  # fmt: skip


def upcast(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values in float32; float64 stays as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def places(row: Int[Tensor, " token"]) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
    """The index of each position's example, and its index within the example, both from 0.

    ``row`` may hold any numbers in any order; examples are ordered by their number.

    Example:
        >>> from mechunlearn.editing.objectives.rows import places
        >>> [one.tolist() for one in places(torch.tensor([7, 3, 7]))]
        [[1, 0, 1], [0, 0, 1]]
    """
    _, line, counts = torch.unique(row, return_inverse=True, return_counts=True)
    # Stable, so that the positions of an example keep their order. Sorted, they are contiguous: the column
    # is the distance from the example's first.
    order = torch.argsort(line, stable=True)
    starts = counts.cumsum(0) - counts
    column = torch.empty_like(line)
    column[order] = torch.arange(len(row), device=row.device) - starts[line[order]]
    return line, column


def by_row(
    values: Float[Tensor, " token"], row: Int[Tensor, " token"], *, fill: float = 0.0
) -> Float[Tensor, "row longest"]:
    """One row of values per example, in the order of the examples' numbers, padded with ``fill``."""
    line, column = places(row)
    blank = values.new_full((int(line.max()) + 1, int(column.max()) + 1), fill)
    return blank.index_put((line, column), values)


def row_sums(values: Float[Tensor, " token"], row: Int[Tensor, " token"]) -> Float[Tensor, " row"]:
    """The sum of the values of each example."""
    return by_row(values, row).sum(-1)


def row_means(values: Float[Tensor, " token"], row: Int[Tensor, " token"]) -> Float[Tensor, " row"]:
    """The mean of the values of each example."""
    return row_sums(values, row) / row_sums(torch.ones_like(values), row)


def required(tensor: Shaped[Tensor, "..."] | None, what: str, declared: str) -> Shaped[Tensor, "..."]:
    """The tensor, or a TrainingError if it is None.

    ``what`` names the tensor in the error message; ``declared`` is the Request argument that provides it.
    """
    if tensor is None:
        raise TrainingError(
            f"the loss needs {what} and none were read; declare them with Request(..., {declared})"
        )
    return tensor
