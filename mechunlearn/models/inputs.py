"""What a model is fed: text, token ids, or what a tokenizer returned.

1. Text is a string or a list of strings; it is left to the model's tokenizer.
2. Ids are a tensor, an array or lists of one row or several. A tokenizer, and ``apply_chat_template``,
   return a mapping with ``input_ids`` and ``attention_mask``. Rows of different length are padded on the
   right.
3. A mask has the shape of its ids.
4. Anything else is refused by name: a mapping without ids would be read as the names of its keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechunlearn.errors import ModelError

Words = (
    str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | np.ndarray | Mapping[str, Any]
    | Int[Tensor, "batch pos"] | Int[Tensor, "pos"]
)  # fmt: skip
"""The input of a model: text, token ids, or a tokenizer's mapping with ``input_ids``."""

_EXPECTED = (
    "give a string, a list of strings, token ids (tensor, array or lists), or what a tokenizer returns "
    "(a mapping with input_ids)"
)


class Ids(NamedTuple):
    """Rows of token ids, with their mask."""

    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]


def texts_of(input: Any) -> list[str] | None:
    """The strings of an input that is a string or a list of strings; None for any other."""
    if isinstance(input, str):
        return [input]
    if hasattr(input, "to_numpy"):  # a column of a data frame
        input = input.to_numpy()
    several = isinstance(input, Sequence | np.ndarray) and len(input) > 0
    return [str(text) for text in input] if several and all(isinstance(text, str) for text in input) else None


def ids_of(input: Any, mask: Any = None) -> Ids:
    """Token ids and mask of an input that is no text.

    Args:
        input: ids, or a mapping with ``input_ids`` and, if need be, ``attention_mask``.
        mask: 1 for tokens, 0 for padding; None where the input says it, or has no padding.

    Raises:
        ModelError: it holds no ids, or the mask has another shape.
    """
    if isinstance(input, Mapping):
        if "input_ids" not in input:
            raise ModelError(
                f"the input is a {type(input).__name__} with the keys {list(input)}; {_EXPECTED}"
            )
        if mask is not None and input.get("attention_mask") is not None:
            raise ModelError("the input has an attention_mask of its own; leave attention_mask= out")
        return ids_of(input["input_ids"], input.get("attention_mask") if mask is None else mask)
    tokens, inside = _rows(input, "input")
    if mask is None:
        return Ids(tokens, inside)
    marks, marked = _rows(mask, "attention_mask")
    if marks.shape != tokens.shape or not torch.equal(marked, inside):
        raise ModelError(
            f"attention_mask has the shape {tuple(marks.shape)}, the ids {tuple(tokens.shape)}; give 1 or 0 "
            "for every id"
        )
    marks = (marks != 0).long() * inside
    if not bool(marks.any(1).all()):
        raise ModelError(f"row {int((~marks.any(1)).nonzero()[0])} of attention_mask masks every token")
    return Ids(tokens, marks)


def _rows(value: Any, name: str) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Whole numbers as rows of one length, with 1 where a row has a number and 0 where it is padded."""
    if isinstance(value, Sequence) and value and all(isinstance(row, Sequence | np.ndarray) for row in value):
        rows = [_numbers(row, name) for row in value]
        if any(row.ndim != 1 for row in rows):
            raise ModelError(f"{name} has more than two axes; give ids [batch pos]")
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        inside = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    else:
        numbers = _numbers(value, name)
        if numbers.ndim not in (1, 2):
            raise ModelError(f"{name} has the shape {tuple(numbers.shape)}; give ids [pos] or [batch pos]")
        padded = numbers if numbers.ndim == 2 else numbers[None]
        inside = torch.ones_like(padded)
    if not padded.numel() or not bool(inside.any(1).all()):
        raise ModelError(f"{name} has a row without a single token; give at least one id a row")
    return padded, inside


def _numbers(value: Any, name: str) -> Int[Tensor, "..."]:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ModelError(f"{name} is a {type(value).__name__}; {_EXPECTED}") from None
    # An empty list has no numbers, and would be one of floats.
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
        raise ModelError(f"{name} holds numbers of type {tensor.dtype}; token ids are whole numbers")
    return tensor.long()
