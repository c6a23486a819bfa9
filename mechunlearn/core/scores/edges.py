"""Scores of edges: one number per sender and receiver of the residual stream.

1. The values are an xarray with the dimensions ``sender`` and ``receiver``, and perhaps ``fact`` and ``pos``.
   They are NaN where there is no edge (the receiver computes before the sender) and where a prompt has no
   token of a position group.
2. Reductions are those of `Scores`: facts by their mean, positions by the value farthest from 0, sign kept.
3. ``nodes`` adds up the edges of every sender, or of every receiver, and gives `Scores`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from mechunlearn.core.scores.combining import farthest_position
from mechunlearn.core.scores.edge_drawing import heatmap
from mechunlearn.core.scores.labelled import LabelledScores
from mechunlearn.core.scores.labels import raw_change
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, one_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

DIMS = ("fact", "sender", "receiver", "pos")
End = Literal["sender", "receiver"]


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores(LabelledScores):
    """One number per edge, and per fact or position where there are several.

    Build one with ``EdgeScores.of``; ``edge_attribution`` returns one.

    Args:
        values: an array with the dimensions ``sender`` and ``receiver`` and the coordinates that
            ``EdgeScores.of`` writes.
        params: the sites of the model, which count parameters; None if it is not known.
        recipe: the facts and options they were measured with, with which `verify` measures again.

    Example:
        >>> senders = [Site.parse(text) for text in ("embed", "L0.head[0]", "L0.mlp")]
        >>> receivers = [Site.parse(text) for text in ("L0.mlp", "L0.resid_post")]
        >>> values = np.array([[0.1, 0.0], [-0.9, 0.2], [np.nan, 0.5]])
        >>> scores = EdgeScores.of(values, senders, receivers)
        >>> scores.top(1)
        ((Site.parse('L0.head[0]'), Site.parse('L0.mlp')),)
        >>> scores.nodes().values.values.round(3).tolist()
        [0.1, -0.7, 0.5]
    """

    params: ModelSites | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, "..."] | Float[torch.Tensor, "..."],
        senders: Sequence[Site],
        receivers: Sequence[Site],
        *,
        dims: tuple[str, ...] = ("sender", "receiver"),
        tokens: Sequence[str] | None = None,
        params: ModelSites | None = None,
        title: str = "edge scores",
        unit: str = "score",
        facts: Sequence[int] | None = None,
        change_sign: int = 1,
        recipe: Mapping[str, Any] | None = None,
    ) -> EdgeScores:
        """Label an array.

        Args:
            values: the scores; NaN where there is no edge. Copied.
            senders: the sites along the dimension ``sender``.
            receivers: the sites along the dimension ``receiver``.
            dims: name of every dimension of ``values``; among ``fact sender receiver pos``.
            tokens: label of every position; may repeat.
            params: ``hm.sites``, which counts parameters; without it no budget can select from ``nodes()``.
            title: what was measured.
            unit: what the numbers are.
            facts: number of every fact in the collection that was scored, where some were left out.
            change_sign: -1 where the raw change of the metric has the opposite sign of the score; see
                ``change``.
            recipe: the facts and options they were measured with.

        Raises:
            ScoresError: if dimensions, labels and array do not fit each other.
        """
        array = values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else values
        array = np.array(array, dtype=np.float64)
        array.flags.writeable = False
        _check(array.shape, dims, {"sender": senders, "receiver": receivers, "pos": tokens, "fact": facts})
        sizes = dict(zip(dims, array.shape, strict=True))
        coords: dict[str, Any] = {dim: range(size) for dim, size in sizes.items()}
        if facts is not None:
            coords["fact"] = list(facts)
        for end, sites in (("sender", senders), ("receiver", receivers)):
            coords |= {
                end: [str(site) for site in sites],
                f"{end}_layer": (end, [-1 if site.layer is None else site.layer for site in sites]),
                f"{end}_kind": (end, [site.kind for site in sites]),
                f"{end}_index": (end, [-1 if site.index is None else site.index for site in sites]),
            }
        if "pos" in sizes:
            coords["token"] = ("pos", list(tokens or map(str, range(sizes["pos"]))))
        labelled = xr.DataArray(array, coords, dims, attrs={"title": title, "unit": unit})
        return cls(labelled.assign_attrs(change_sign=change_sign), params, dict(recipe or {}))

    @property
    def change(self) -> EdgeScores:
        """The raw change of the metric by corrupting; scores say how far an edge supports the answer."""
        return self._with(raw_change(self.values))

    @property
    def senders(self) -> tuple[Site, ...]:
        """The sites that write to the residual stream, in the order of the array."""
        return self._sites("sender")

    @property
    def receivers(self) -> tuple[Site, ...]:
        """The sites that read the residual stream, in the order of the array."""
        return self._sites("receiver")

    def _sites(self, end: str) -> tuple[Site, ...]:
        return tuple(Site.parse(str(site)) for site in self.values[end].values)

    def reduce(self) -> EdgeScores:
        """Reduce to one number per edge: the mean of facts, then the extreme over positions."""
        return self._with(farthest_position(self._averaged()))

    def nodes(self, *, by: End = "sender") -> Scores:
        """Add up the edges of every sender, or of every receiver, for each fact and position.

        The sum over a sender's receivers estimates how far all that the sender writes supports the answer:
        for edges from ``edge_attribution`` it is exactly the score that ``attribution`` gives that component,
        and `verify` measures it. The sum over a receiver's senders estimates the same for what the receiver
        alone reads from the residual stream.

        Args:
            by: the end that keeps its own score, ``"sender"`` or ``"receiver"``.

        Raises:
            ScoresError: if `by` is neither.
        """
        if by not in get_args(End):
            raise ScoresError(one_of("by", by, get_args(End)))
        over = "receiver" if by == "sender" else "sender"
        # Without min_count, an end whose edges are all NaN would sum to 0.
        summed = self.values.sum(over, min_count=1)
        dims = tuple("site" if dim == by else str(dim) for dim in summed.dims)
        return Scores.of(
            summed.values,
            self._sites(by),
            dims=dims,
            tokens=summed["token"].values.tolist() if "pos" in dims else None,
            facts=summed["fact"].values.tolist() if "fact" in dims else None,
            params=self.params,
            title=f"{self.title}, summed over {over}s",
            unit=str(self.values.attrs["unit"]),
            change_signs=int(self.values.attrs["change_sign"]),
            recipe=self.recipe if by == "sender" else None,
        )

    def top(self, k: int, *, by: Literal["abs", "signed"] = "abs") -> tuple[tuple[Site, Site], ...]:
        """List the best edges as pairs of sender and receiver, the best first; ties keep the array's order.

        Args:
            k: number of edges.
            by: rank by absolute or by signed value.

        Raises:
            ScoresError: if there are fewer edges, or `by` is neither.
        """
        if by not in ("abs", "signed"):
            raise ScoresError(one_of("by", by, ("abs", "signed")))
        flat = self.reduce().values.transpose("sender", "receiver").values.ravel()
        edges = np.flatnonzero(~np.isnan(flat))
        if not 1 <= k <= len(edges):
            raise ScoresError(f"top selects 1 to {len(edges)} edges, as many as were scored; not {k}")
        ranks = np.abs(flat[edges]) if by == "abs" else flat[edges]
        best = edges[np.argsort(-ranks, kind="stable")[:k]]
        senders, receivers = self.senders, self.receivers
        return tuple((senders[i // len(receivers)], receivers[i % len(receivers)]) for i in best.tolist())

    def to_frame(self) -> pd.DataFrame:
        """One row per score that is not NaN, with the labels of both ends."""
        return self.values.to_dataframe(name="score").dropna(subset=["score"]).reset_index()

    def heatmap(self, *, most: int | None = None) -> go.Figure:
        """Draw the mean over facts, senders upwards and receivers to the right, a panel for every position.

        Args:
            most: largest number of senders and of receivers; of more, those with the strongest edges are
                drawn. Default 40, and 20 where every position has a panel.
        """
        most = most or (20 if "pos" in self.values.dims else 40)
        return heatmap(self._averaged(), most=most)


def _check(shape: tuple[int, ...], dims: tuple[str, ...], labels: Mapping[str, Sequence[Any] | None]) -> None:
    for dim in dims:
        if dim not in DIMS:
            raise ScoresError(one_of("a dimension of edge scores", dim, DIMS))
    if len(shape) != len(dims) or len(set(dims)) != len(dims) or not {"sender", "receiver"} <= set(dims):
        raise ScoresError(
            "dims name each dimension once, 'sender' and 'receiver' among them; "
            f"{dims} does not fit shape {shape}"
        )
    for dim, names in labels.items():
        size = shape[dims.index(dim)] if dim in dims else 0
        if names is not None and len(names) != size:
            raise ScoresError(f"{len(names)} labels for {dim!r}, whose size is {size}; give one for each")
    for end in ("sender", "receiver"):
        (site, times), *_ = Counter(labels[end] or ["no site"]).most_common(1)
        if times > 1:
            raise ScoresError(f"the {end} {site} is scored {times} times; give every site once")
