"""Patches: what is written into a run, at which positions, with values of which other run.

1. A ``Write`` is a hook point, and perhaps some units of its head or neuron axis. Sites at one hook point
   that are written together (the heads of a set, the neurons of a set) are one write.
2. An intervention is the writes of one run: one site, a window of layers, the keys of some heads.
3. A patch is one intervention in one row of a run, at some positions, with the values of one row of a source.
   By definition it is a run of its own; the engine gives the same result with less work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechunlearn.core.sites.site import Site
from mechunlearn.errors import SiteError
from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True)
class Write:
    """A hook point to write at; its name is the key of the values in a source.

    ``kind`` decides where a run has to begin. ``units`` are heads, groups or neurons on ``axis`` (2, or 1 for
    patterns); None is the whole activation.
    """

    layer: int
    kind: str
    name: str
    units: tuple[int, ...] | None = None
    axis: int = 2


_ORDER = ("resid_pre", "q", "k", "v", "pattern", "z", "attn", "resid_mid", "neuron", "mlp", "resid_post")


def writes_of(hm: HookedModel, sites: Iterable[Site]) -> tuple[Write, ...]:
    """The writes of one intervention, in the order in which the model computes them.

    Sites are states (``L3.resid_pre``, ``L3.pattern[1]``), whole ``attn`` and ``mlp`` outputs, heads
    (``L3.head[1]`` is its ``z``; ``.q``, ``.k``, ``.v``; ``L3.kv[0].k`` under grouped queries) and neurons.
    SiteError is raised for a site that the model does not have, or that names weights and not an activation.
    """
    units: dict[tuple[int, str, str, int], set[int] | None] = {}
    chosen = list(sites)
    hm.sites.check(chosen)
    for site in chosen:
        if site.kind == "embed" or (site.kind == "mlp" and site.part):
            raise SiteError(f"{site} names weights, not an activation to patch; give L0.resid_pre or an mlp")
        for point in hm.arch.hooks(site):
            part = point.name.rpartition("_")[2]
            kind = part if site.kind in ("head", "kv") else site.kind
            key = (site.layer or 0, kind, point.name, point.axis)
            indices = units.setdefault(key, None if point.index is None else set())
            if indices is not None and point.index is not None:
                indices.add(point.index)
    writes = []
    for key in sorted(units, key=lambda key: (key[0], _ORDER.index(key[1]))):
        layer, kind, name, axis = key
        indices = units[key]
        writes.append(Write(layer, kind, name, None if indices is None else tuple(sorted(indices)), axis))
    return tuple(writes)


@dataclass(frozen=True, eq=False)
class Patches:
    """A table of patches; each writes the values of one ``source`` row at the positions ``where``."""

    interventions: tuple[tuple[Write, ...], ...]
    intervention: Int[Tensor, "patch"]
    row: Int[Tensor, "patch"]
    source: Int[Tensor, "patch"]
    where: Bool[Tensor, "patch pos"]

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def grid(
        cls,
        interventions: Sequence[tuple[Write, ...]],
        where: Bool[Tensor, "place row pos"],
        *,
        source: Int[Tensor, "#place row"] | None = None,
    ) -> Patches:
        """Every intervention at every place in every row; results reshape to ``[intervention place row]``.

        A place is a position or a group of tokens. ``source=None`` is for a source with the rows of the run.

        Example:
            >>> len(Patches.grid([()], torch.ones(3, 2, 5, dtype=torch.bool)))
            6
        """
        places, rows = where.shape[:2]
        count = len(interventions)
        row = torch.arange(rows, device=where.device)
        sources = (row[None] if source is None else source).expand(places, rows).flatten()
        return cls(
            tuple(interventions),
            torch.arange(count, device=where.device).repeat_interleave(places * rows),
            row.repeat(count * places),
            sources.repeat(count),
            where.flatten(0, 1).repeat(count, 1),
        )

    def pick(self, index: Int[Tensor, "chosen"]) -> Patches:
        """Some of the patches."""
        columns = (column[index] for column in (self.intervention, self.row, self.source, self.where))
        return Patches(self.interventions, *columns)

    @property
    def names(self) -> tuple[str, ...]:
        """The hook points written at, whose activations both the run and the source must hold."""
        return tuple(dict.fromkeys(write.name for writes in self.interventions for write in writes))
