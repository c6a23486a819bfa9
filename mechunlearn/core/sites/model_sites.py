"""All sites of one model: their sizes, selections within a budget, and random controls.

1. A ``Shape`` determines which sites exist; a function from the model counts the parameters of one.
2. A budget is spent on ranked sites; see ``mechunlearn.core.sites.budget``.
3. A random control of a localization spends the localization's size on components in a random order. It is
   drawn again until the two sizes agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mechunlearn.core.sites.budget import TOLERANCE, gap, spend
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import LocalizationError, SiteError

if TYPE_CHECKING:
    import plotly.graph_objects as go

_DRAWS = 100


@dataclass(frozen=True)
class Shape:
    """The numbers that determine which sites a model has; ``n_kv_heads < n_heads`` under grouped queries."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_mlp: int
    gated: bool

    @property
    def grouped(self) -> bool:
        """Whether several heads share one group of keys and values."""
        return self.n_kv_heads < self.n_heads

    def problem(self, site: Site) -> str | None:
        """Return why the model has no such site, or None if it has."""
        if site.layer is not None and site.layer >= self.n_layers:
            return f"its layers are L0 to L{self.n_layers - 1}"
        if site.kind == "kv" and not self.grouped:
            keys = f"L{site.layer}.head[{site.index}]"
            return f"every head has keys and values of its own, {keys}.k and {keys}.v"
        name, count = {
            "kv": ("groups of keys and values", self.n_kv_heads),
            "neuron": ("neurons", self.d_mlp),
        }.get(site.kind, ("heads", self.n_heads))
        if site.index is not None and site.index >= count:
            return f"its {name} are numbered 0 to {count - 1}"
        if site.kind == "head" and site.part in ("k", "v") and self.grouped and site.index is not None:
            group = site.index // (self.n_heads // self.n_kv_heads)
            return f"its heads share keys and values in groups, here L{site.layer}.kv[{group}]"
        if site.part == "gate" and not self.gated:
            return f"its MLPs have no gate, only L{site.layer}.mlp.in and L{site.layer}.mlp.out"
        return None


class ModelSites(Localization):
    """All whole components of a model: every ``attn``, every ``mlp``, and ``embed``.

    It is a localization itself, so ``hm.sites - loc`` is a complement. Set operations return plain
    localizations. Norms and positions belong to no site and are never counted.

    Args:
        shape: the model's shape.
        counts: function that counts the parameters of one site; equal for all sites of a kind in a layer.

    Example:
        >>> shape = Shape(n_layers=4, n_heads=2, n_kv_heads=2, d_mlp=100, gated=False)
        >>> sizes = {"embed": 500, "attn": 400, "head": 100, "mlp": 1000, "neuron": 10}
        >>> sites = ModelSites(shape, lambda site: sizes[site.kind])
        >>> sites.mlps()
        Localization(L0.mlp, L1.mlp, L2.mlp, L3.mlp; every MLP)
        >>> sites.size(sites.mlps()), sites.total
        (4000, 6100)
    """

    __slots__ = ("_counts", "_shape")

    def __init__(self, shape: Shape, counts: Callable[[Site], int]) -> None:
        blocks = [Site(kind, layer) for layer in range(shape.n_layers) for kind in ("attn", "mlp")]
        super().__init__([Site("embed"), *blocks], source="every component")
        self._shape = shape
        self._counts = counts

    @property
    def shape(self) -> Shape:
        """The numbers that determine which sites there are."""
        return self._shape

    @property
    def total(self) -> int:
        """Number of parameters of all components."""
        return self.size(self)

    def attns(self) -> Localization:
        """Every whole attention layer."""
        return Localization([site for site in self if site.kind == "attn"], source="every attention layer")

    def mlps(self) -> Localization:
        """Every whole MLP."""
        return Localization([site for site in self if site.kind == "mlp"], source="every MLP")

    def heads(self) -> Localization:
        """Every head; under grouped queries every group of keys and values too."""
        pieces = [piece for site in self.attns() for piece in self.pieces(site)]
        return Localization(pieces, source="every head")

    def neurons(self, layer: int) -> Localization:
        """Every neuron of one layer."""
        self.check([Site("mlp", layer)])
        return Localization(self.pieces(Site("mlp", layer)), source=f"every neuron of L{layer}")

    def pieces(self, site: Site) -> tuple[Site, ...]:
        """The heads of a whole ``attn`` or the neurons of a whole ``mlp``; nothing for any other site."""
        heads, groups = self.shape.n_heads, self.shape.n_kv_heads * self.shape.grouped
        numbers = {"attn": {"head": heads, "kv": groups}, "mlp": {"neuron": self.shape.d_mlp}}
        counts = {} if site.part else numbers.get(site.kind, {})
        return tuple(Site(kind, site.layer, index) for kind, n in counts.items() for index in range(n))

    def check(self, sites: Iterable[Site]) -> None:
        """Raise SiteError, which says which sites there are, for the first site that is not of this model."""
        for site in sites:
            if not isinstance(site, Site):
                raise SiteError(f"{site!r} is no Site; write Localization([{str(site)!r}]) or Site.parse")
            if problem := self.shape.problem(site):
                raise SiteError(f"{site} is not a site of this model: {problem}; choose from hm.sites")

    def size(self, sites: Iterable[Site]) -> int:
        """Count the parameters of sites of this model (SiteError for others); state sites hold none."""
        weights = [site for site in sites if not isinstance(site, Site) or site.has_weights]
        self.check(weights)
        # All heads of a layer have one size, and so have its thousands of neurons: count one of each.
        alike = Counter((site.kind, site.layer, site.part) for site in weights)
        example = {(site.kind, site.layer, site.part): site for site in weights}
        return sum(number * self._counts(example[key]) for key, number in alike.items())

    def fill(self, ranked: Sequence[Site], *, params: int, seed: int = 0) -> Localization:
        """Spend a budget of parameters on sites, the best first, never going above it.

        Whole sites are taken while they fit. The first that does not fit is broken into its heads or neurons,
        and a random choice of those fills the rest. SiteError if a site is not of this model,
        LocalizationError if nothing fits the budget.

        Example:
            >>> shape = Shape(n_layers=4, n_heads=2, n_kv_heads=2, d_mlp=100, gated=False)
            >>> sites = ModelSites(shape, lambda site: {"mlp": 1000, "neuron": 10}[site.kind])
            >>> sites.fill(list(sites.mlps()), params=1025)
            Localization(L0.mlp, L1.mlp.neuron[36], L1.mlp.neuron[82]; 1,020 parameters, gap -0.5 %)
        """
        chosen = spend(ranked, params, sites=self, random=np.random.default_rng(seed))
        if not chosen:
            raise LocalizationError(
                f"a budget of {params:,} parameters is below the smallest of the {len(ranked)} sites and of "
                "their heads and neurons; raise it"
            )
        return Localization(chosen, source=gap(self.size(chosen), params))

    def sample(self, *, like: Localization, seed: int, within: Localization | None = None) -> Localization:
        """Draw a random localization of the same size as another, as a control for it.

        Whole components are drawn first; heads or neurons of one more make up the rest, so that the sizes
        agree within 5 %. ``source`` states the gap. A control equals ``like`` only where no other choice
        has its size. Sites come from ``within``, by default every ``attn`` and ``mlp``. LocalizationError if
        ``like`` is empty, or ``within`` cannot match its size.
        """
        pool = self.attns() | self.mlps() if within is None else within
        target, available = self.size(like), self.size(pool)
        slack = int(target * TOLERANCE)
        if not like:
            raise LocalizationError("like is an empty localization and has no control; choose sites first")
        if available < target - slack:
            raise LocalizationError(
                f"within holds {available:,} parameters, fewer than the {target:,} of like; "
                "pass a larger one, such as within=hm.sites"
            )
        drawn = self._draw(list(pool), like=like, slack=slack, random=np.random.default_rng(seed))
        if abs(self.size(drawn) - target) > slack:
            raise LocalizationError(
                f"no random choice within {pool} has the {target:,} parameters of like within 5 %; "
                "pass one that holds smaller sites, such as within=hm.sites.mlps()"
            )
        source = f"random, like {like.source or f'{len(like)} sites'} ({gap(self.size(drawn), target)})"
        return Localization(drawn, source=source)

    def _draw(
        self, pool: list[Site], *, like: Localization, slack: int, random: np.random.Generator
    ) -> Localization:
        """Draw until the sizes agree and the draw differs from `like`; else return the nearest."""
        target, nearest = self.size(like), Localization()
        for _ in range(_DRAWS):
            order = [pool[index] for index in random.permutation(len(pool))]
            drawn = Localization(spend(order, target, sites=self, random=random, slack=slack))
            distance, least = (abs(self.size(sites) - target) for sites in (drawn, nearest))
            if distance <= slack and drawn != like:
                return drawn
            nearest = drawn if distance < least else nearest
        return nearest

    def compare(self, localizations: Mapping[str, Localization]) -> go.Figure:
        """Draw localizations side by side; a cell is the share of a component that a localization holds."""
        from mechunlearn.core.sites.drawing import compare

        return compare(localizations, self)
