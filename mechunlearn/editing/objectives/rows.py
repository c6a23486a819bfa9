"""What losses share: positions that are asked, positions by example, and numbers wide enough.

1. A position whose label is negative (-100) is asked nothing: it is dropped before any loss is formed, so
   that no label ever indexes the vocabulary from its end.
2. Half-precision logits are read in float32.
3. Positions lie in one axis; a sum over an answer lays them out as one line per example.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mechunlearn.editing.objectives.requests import Outputs
from mechunlearn.errors import TrainingError


def asked(output: Outputs) -> Outputs:
    """Give the positions that have a label.

    Args:
        output: what was read.

    Raises:
        TrainingError: no position has one.

    Example:
        >>> from mechunlearn.editing.objectives.rows import asked
        >>> labels = torch.tensor([1, -100])
        >>> asked(mu.objectives.Outputs(torch.zeros(2, 3), labels, torch.tensor([0, 0]))).labels
        tensor([1])
    """
    kept = output.labels >= 0
    if not bool(kept.any()):
        raise TrainingError(
            "a loss was asked for no position at all: no label is a token, or the batch is empty"
        )
    if bool(kept.all()):
        return output
    parts = {f.name: getattr(output, f.name) for f in fields(output)}
    # Logits that were not asked for have no rows to drop.
    return replace(output, **{
        name: part[kept] for name, part in parts.items() if part is not None and len(part) == len(kept)
    })  # fmt: skip


def wide(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Give values in float32, or in float64 if they were.

    Args:
        values: of any floating type.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def places(row: Int[Tensor, " token"]) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
    """Number the examples, and the positions within each, both from 0.

    Args:
        row: the example of each position; any numbers, in any order.

    Example:
        >>> from mechunlearn.editing.objectives.rows import places
        >>> [one.tolist() for one in places(torch.tensor([7, 3, 7]))]
        [[1, 0, 1], [0, 0, 1]]
    """
    _, line, counts = torch.unique(row, return_inverse=True, return_counts=True)
    order = torch.argsort(line, stable=True)
    starts = counts.cumsum(0) - counts
    column = torch.empty_like(line)
    column[order] = torch.arange(len(row), device=row.device) - starts[line[order]]
    return line, column


def by_row(
    values: Float[Tensor, " token"], row: Int[Tensor, " token"], *, fill: float = 0.0
) -> Float[Tensor, "row longest"]:
    """Lay values out with one line per example, in the order of the examples' numbers.

    Args:
        values: one per position.
        row: the example of each.
        fill: what stands where an example has no more positions.
    """
    line, column = places(row)
    blank = values.new_full((int(line.max()) + 1, int(column.max()) + 1), fill)
    return blank.index_put((line, column), values)


def row_sums(values: Float[Tensor, " token"], row: Int[Tensor, " token"]) -> Float[Tensor, " row"]:
    """Sum values over each example.

    Args:
        values: one per position.
        row: the example of each.
    """
    return by_row(values, row).sum(-1)


def row_means(values: Float[Tensor, " token"], row: Int[Tensor, " token"]) -> Float[Tensor, " row"]:
    """Average values over each example.

    Args:
        values: one per position.
        row: the example of each.
    """
    return row_sums(values, row) / row_sums(torch.ones_like(values), row)


def given(part: Shaped[Tensor, "..."] | None, what: str, declared: str) -> Shaped[Tensor, "..."]:
    """Give a part of a output, or say how it is asked for.

    Args:
        part: the part, None if it was not read.
        what: it in words.
        declared: what the :class:`~mechunlearn.editing.objectives.Request` needs.

    Raises:
        TrainingError: it was not read.
    """
    if part is None:
        raise TrainingError(
            f"the loss needs {what} and none were read; declare them with Request(..., {declared})"
        )
    return part
