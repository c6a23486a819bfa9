"""The base class of scores of sites and of edges: a labelled array with means and a picture."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import xarray as xr

from mechunlearn.errors import ScoresError, one_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

_Kind = TypeVar("_Kind", bound="LabelledScores")


@dataclass(frozen=True, eq=False, repr=False)
class LabelledScores(ABC):
    """A read-only labelled array, whose attributes hold its ``title`` and ``unit``."""

    values: xr.DataArray

    @property
    def title(self) -> str:
        """What was measured."""
        return str(self.values.attrs["title"])

    @abstractmethod
    def heatmap(self) -> go.Figure:
        """Draw the mean over facts."""

    def mean(self: _Kind, *dims: str) -> _Kind:
        """Average over some dimensions, leaving out what is NaN.

        Raises:
            ScoresError: if a dimension is not there.
        """
        for dim in dims:
            self._require(dim)
        return self._with(self.values.mean(dims, keep_attrs=True))

    def _averaged(self) -> xr.DataArray:
        return self.mean(*(dim for dim in ("fact", "sample") if dim in self.values.dims)).values

    def _require(self, dim: str) -> None:
        if dim not in self.values.dims:
            raise ScoresError(one_of("a dimension of these scores", dim, self.values.dims))

    def _with(self: _Kind, values: xr.DataArray) -> _Kind:
        values.values.flags.writeable = False
        return dataclasses.replace(self, values=values)

    def __eq__(self, other: object) -> bool:
        return self.values.identical(other.values) if isinstance(other, type(self)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{dim} {size}" for dim, size in self.values.sizes.items())
        return f"{type(self).__name__}({self.title}; {sizes})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {**self.heatmap()._repr_mimebundle_(include, exclude), "text/plain": repr(self)}
