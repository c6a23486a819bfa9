"""How a block was called, so that it can be called again for other rows and fewer positions.

1. Every argument of every block is recorded while the model runs once: the attention mask, rotary angles,
   position numbers, whatever a family passes. No family is known by name.
2. A later call passes the same arguments, each tensor cut to the rows and positions that run again. Shapes
   tell which axes these are: a mask ``[row 1 pos pos]`` is cut on its queries; any other tensor with
   positions on its second axis, or on its only one, is cut there.
3. The key-value cache is replaced by one that puts the keys and values of the first run before the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class RecordingCache:
    """A key-value cache that records the keys and values of each layer, positions already encoded."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Record one layer's keys and values, and give them back."""
        self.keys[layer], self.values[layer] = keys.detach(), values.detach()
        return keys, values


@dataclass(frozen=True)
class PrefixCache:
    """A key-value cache that holds the keys and values of one layer at earlier positions."""

    keys: Float[Tensor, "row kv before d_head"]
    values: Float[Tensor, "row kv before d_head"]

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Put the earlier keys and values before the new ones."""
        if not self.keys.shape[2]:
            return keys, values
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


class _Placeholder:
    """Stands in recorded arguments for the residual stream, or for the cache."""


STATE, CACHE = _Placeholder(), _Placeholder()


@dataclass(frozen=True)
class Call:
    """The arguments of one block, with placeholders for the residual stream and the cache.

    ``rows`` and ``positions`` are those of the recorded run, by which axes of tensors are recognised.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    rows: int
    positions: int

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Call, Tensor]:
        """Record a call, and give the residual stream that was passed, too."""
        state: Tensor = args[0] if args else kwargs["hidden_states"]
        args, kwargs = _mapped((args, dict(kwargs)), lambda v: STATE if v is state else _without_cache(v))
        return cls(args, kwargs, state.shape[0], state.shape[1]), state

    def filled(self, state: Tensor | None, cache: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The recorded arguments, with this state and cache in them."""
        # Placeholders are found by identity, since tensors have no equality that gives one truth value.
        values = {id(STATE): state, id(CACHE): cache}
        args, kwargs = _mapped((self.args, dict(self.kwargs)), lambda v: values.get(id(v), v))
        return args, kwargs

    def cut(self, rows: Int[Tensor, "chosen"], start: int, stop: int) -> Call:
        """The same call for some rows and for the positions from `start` until before `stop`."""

        def fit(value: Any) -> Any:
            return self._fit(value, rows, start, stop) if isinstance(value, Tensor) else value

        args, kwargs = _mapped((self.args, dict(self.kwargs)), fit)
        return Call(args, kwargs, len(rows), stop - start)

    def _fit(self, value: Tensor, rows: Int[Tensor, "chosen"], start: int, stop: int) -> Tensor:
        shape, size = value.shape, self.positions
        if value.ndim == 1 and shape[0] == size:
            return value[start:stop]
        if value.ndim < 2 or shape[0] not in (1, self.rows):
            return value
        # One row stands for all rows: it is broadcast, or the only row of the run.
        chosen = value if shape[0] == 1 else value[rows]
        if value.ndim == 4 and shape[2:] == (size, size):
            return chosen[:, :, start:stop, :stop]
        return chosen[:, start:stop] if shape[1] == size else chosen


def _without_cache(value: Any) -> Any:
    from transformers.cache_utils import Cache

    return CACHE if isinstance(value, Cache) else value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change every value inside nested tuples, lists and dictionaries."""
    if isinstance(value, tuple | list):
        return type(value)(_mapped(each, change) for each in value)
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    return change(value)
