"""A frozen set of weight sites: what localizers select and edits change.

1. The sites of a localization are disjoint: no weight belongs to two of them, so sizes add up.
2. Both operands of a set operation together must be disjoint or equal site by site, because
   ``{L3.mlp} - {L3.mlp.neuron[7]}`` would otherwise silently remove nothing. ``refine`` brings sets to one
   grain.
3. The file is a list of site strings that people can read and write.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechunlearn.core.files import write_text
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import DataError, LocalizationError, one_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from mechunlearn.core.sites.model_sites import ModelSites

FORMAT = "mechunlearn.localization/1"


class Localization(Set[Site]):
    """A frozen set of disjoint weight sites: the weights that an edit may change.

    The operators ``| & - ^ <= ==`` compare sites and return localizations; iteration is sorted; two
    localizations of the same sites are equal whatever their source. A localization may be empty.

    Args:
        sites: sites, or the strings they print as.
        source: a few words on how the set was chosen; shown and saved, never compared.

    Raises:
        SiteError: if a string is no site.
        LocalizationError: if two sites share weights, or one is a state site.

    Example:
        >>> mlps = Localization(["L4.mlp", "L3.mlp"], source="by hand")
        >>> mlps
        Localization(L3.mlp, L4.mlp; by hand)
        >>> mlps - Localization(["L4.mlp", "L5.attn"])
        Localization(L3.mlp)
    """

    __slots__ = ("_sites", "_source")

    def __init__(self, sites: Iterable[Site | str] = (), *, source: str = "") -> None:
        if isinstance(sites, str):
            raise LocalizationError(f"sites are given as a list: [{sites!r}]; not {sites!r}")
        parsed = {Site.parse(site) if isinstance(site, str) else site for site in sites}
        _require_weights(parsed)
        _require_disjoint(parsed)
        # A dictionary is used as an ordered set.
        self._sites = dict.fromkeys(sorted(parsed, key=lambda site: site.key))
        self._source = source

    @property
    def source(self) -> str:
        """A few words on how the set was chosen."""
        return self._source

    def __contains__(self, site: object) -> bool:
        return (Site.parse(site) if isinstance(site, str) else site) in self._sites

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __hash__(self) -> int:
        return hash(frozenset(self._sites))

    def __and__(self, other: Set[Any]) -> Localization:
        operand = self._comparable(other)
        return Localization([site for site in self if site in operand])

    def __or__(self, other: Set[Any]) -> Localization:
        return Localization([*self, *self._comparable(other)])

    def __sub__(self, other: Set[Any]) -> Localization:
        operand = self._comparable(other)
        return Localization([site for site in self if site not in operand])

    def __xor__(self, other: Set[Any]) -> Localization:
        return (self | other) - (self & other)

    def __rsub__(self, other: Set[Any]) -> Localization:
        return self._comparable(other) - self

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def isdisjoint(self, sites: Iterable[Any]) -> bool:
        """Whether no site is in both."""
        return not self & Localization(sites)

    def _comparable(self, sites: Iterable[Any]) -> Localization:
        """Convert an operand, and refuse one that names the same weights at another grain."""
        operand = sites if isinstance(sites, Localization) else Localization(sites)
        _require_disjoint({*self, *operand})
        return operand

    def refine(self, grain: Literal["head", "neuron"], sites: ModelSites) -> Localization:
        """Replace every whole ``attn`` by its heads, or every whole ``mlp`` by its neurons.

        Under grouped queries the heads come with their ``kv`` groups. Output biases belong to no head and
        no neuron, so the refined set may be a few parameters smaller.

        Args:
            grain: ``"head"`` or ``"neuron"``.
            sites: the sites of the model, ``hm.sites``.

        Raises:
            SiteError: if a site is not of this model.
            LocalizationError: if the grain is unknown.
        """
        if grain not in ("head", "neuron"):
            raise LocalizationError(one_of("the grain", grain, ("head", "neuron")))
        sites.check(self)
        coarse = "attn" if grain == "head" else "mlp"
        # Sites of another kind, and parts of a component, have no pieces to take and stay as they are.
        fine = [piece for site in self for piece in (sites.pieces(site) * (site.kind == coarse) or (site,))]
        return Localization(fine, source=self.source)

    def save(self, path: str | Path) -> None:
        """Write the set as readable JSON."""
        record = {"format": FORMAT, "source": self.source, "sites": [str(site) for site in self]}
        write_text(path, json.dumps(record, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Localization:
        """Read a set that ``save`` wrote.

        Raises:
            DataError: if the file is truncated, altered or of another kind.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(record, dict) or record.get("format") != FORMAT:
                raise ValueError(f'it does not say "format": "{FORMAT}"')
            source, sites = record.get("source"), record.get("sites")
            if not isinstance(source, str) or not isinstance(sites, list):
                raise ValueError('it lacks its "source" (a string) or its "sites" (a list)')
            if invalid := [site for site in sites if not isinstance(site, str)]:
                raise ValueError(f"a site is a string; not {invalid[0]!r}")
            if len(set(sites)) < len(sites):
                raise ValueError(f"{Counter(sites).most_common(1)[0][0]} is listed more than once")
            return Localization(sites, source=source)
        except ValueError as problem:
            raise DataError(
                f"{path} is not a whole localization: {problem}; write it again with Localization.save"
            ) from problem

    def heatmap(self, sites: ModelSites | None = None) -> go.Figure:
        """Draw the set, layer by component; see ``mechunlearn.core.sites.drawing.heatmap``."""
        from mechunlearn.core.sites.drawing import heatmap

        return heatmap(self, sites)

    def __repr__(self) -> str:
        shown = [str(site) for site in self]
        if len(shown) > 6:
            shown = [f"{len(shown)} sites: {', '.join(shown[:3])}, ..., {shown[-1]}"]
        return f"{type(self).__name__}({', '.join(shown)}{f'; {self.source}' * bool(self.source)})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {**self.heatmap()._repr_mimebundle_(include, exclude), "text/plain": repr(self)}


def _require_weights(sites: Iterable[Site]) -> None:
    if states := sorted(site for site in sites if not site.has_weights):
        raise LocalizationError(
            f"{states[0]} is a state of the model and holds no weights; a localization is made of weight "
            f"sites such as L{states[0].layer}.attn or L{states[0].layer}.mlp"
        )


def _require_disjoint(sites: Set[Site]) -> None:
    # Sets of thousands of neurons are common: look only where a coarser site exists at all.
    coarse = {site for site in sites if site.kind in ("attn", "mlp", "head", "kv")}
    layers = {site.layer for site in coarse}
    for site in sorted((site for site in sites if site.layer in layers), key=lambda site: site.key):
        for wider in site.wider:
            if wider in coarse:
                grain = {"attn": "head", "mlp": "neuron"}.get(wider.kind if wider.part is None else "")
                fits = grain is not None and site.part is None
                remedy = f'bring both to one grain with .refine("{grain}", hm.sites)' if fits else "keep one"
                raise LocalizationError(f"{wider} and {site} share weights; {remedy}")
