"""What is asked of a sweep: many interventions, each a run of its own in principle.

1. A ``Write`` is one site as the engine sees it: a hook point, a layer, and perhaps units of a head or neuron
   axis. Sites of one hook in one intervention (the heads of a set, the neurons of a set) are one write.
2. An intervention is what is written together: one site, a window of layers, the keys of some heads.
3. A job is one intervention in one row of a run, at some positions, with the values of one row of a source.
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
    """One hook point to write at.

    Args:
        layer: the block.
        kind: the kind of site; decides where a run has to begin.
        name: the hook point, also the name under which the source holds the values.
        units: heads, groups or neurons; None for all of the activation.
        axis: their axis: 2, or 1 for patterns.
    """

    layer: int
    kind: str
    name: str
    units: tuple[int, ...] | None = None
    axis: int = 2


_ORDER = ("resid_pre", "q", "k", "v", "pattern", "z", "attn", "resid_mid", "neuron", "mlp", "resid_post")


def writes_of(hm: HookedModel, sites: Iterable[Site]) -> tuple[Write, ...]:
    """The writes of one intervention, in the order in which the model computes them.

    Args:
        hm: the model.
        sites: states (``L3.resid_pre``, ``L3.pattern[1]``), whole ``attn`` and ``mlp`` outputs, heads
            (``L3.head[1]`` is its ``z``; ``.q .k .v``; ``L3.kv[0].k`` under grouped queries) and neurons.

    Raises:
        SiteError: the model does not have a site, or it is a matrix rather than an activation.
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
            found = units.setdefault(key, None if point.index is None else set())
            if found is not None and point.index is not None:
                found.add(point.index)
    ordered = sorted(units, key=lambda key: (key[0], _ORDER.index(key[1])))
    return tuple(
        Write(
            layer,
            kind,
            name,
            None if (u := units[layer, kind, name, axis]) is None else tuple(sorted(u)),
            axis,
        )
        for layer, kind, name, axis in ordered
    )


@dataclass(frozen=True, eq=False)
class Jobs:
    """A table of jobs, by column.

    Args:
        interventions: what is written together; a job names one by its number.
        intervention: of every job.
        row: of the run that is patched.
        source: the row of the source that gives the values.
        where: the positions that are written.
    """

    interventions: tuple[tuple[Write, ...], ...]
    intervention: Int[Tensor, "job"]
    row: Int[Tensor, "job"]
    source: Int[Tensor, "job"]
    where: Bool[Tensor, "job pos"]

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def grid(
        cls,
        interventions: Sequence[tuple[Write, ...]],
        where: Bool[Tensor, "place row pos"],
        *,
        source: Int[Tensor, "#place row"] | None = None,
    ) -> Jobs:
        """Every intervention at every place in every row; results reshape to ``[intervention place row]``.

        Args:
            interventions: what is written together.
            where: for every place (a position, a group of tokens) the positions it means in each row.
            source: the row of the source for each place and row; None where rows count alike.

        Example:
            >>> jobs = Jobs.grid([()], torch.ones(3, 2, 5, dtype=torch.bool))
            >>> len(jobs)
            6
        """
        places, rows = where.shape[:2]
        count = len(interventions)
        device = where.device
        row = torch.arange(rows, device=device)
        given = (row[None] if source is None else source).expand(places, rows).flatten()
        return cls(
            tuple(interventions),
            torch.arange(count, device=device).repeat_interleave(places * rows),
            row.repeat(count * places),
            given.repeat(count),
            where.flatten(0, 1).repeat(count, 1),
        )

    def pick(self, index: Int[Tensor, "kept"]) -> Jobs:
        """Some of the jobs."""
        columns = (column[index] for column in (self.intervention, self.row, self.source, self.where))
        return Jobs(self.interventions, *columns)

    @property
    def names(self) -> tuple[str, ...]:
        """The hook points written at: what a source must hold, and a run must keep."""
        return tuple(dict.fromkeys(write.name for writes in self.interventions for write in writes))
