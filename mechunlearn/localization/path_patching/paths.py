"""Which way a change goes through the model: who sends it, who receives it, and what happens between.

1. The stream of L blocks is written and read at times 0 to 2L. In block l, attention reads and writes at 2l,
   and the MLP at 2l + 1. A reader sees what was written before it; the logits read at 2L.
2. Where attention and MLP run in parallel, the MLP reads at 2l as well.
3. So a sender reaches a receiver if it writes before the receiver reads; a component between the two is one
   that writes in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, SiteError, one_of
from mechunlearn.localization.engine.block_functions import Parts
from mechunlearn.localization.engine.patches import Write, writes_of
from mechunlearn.models.hooked import HookedModel

Mlps = Literal["freeze", "recompute"]
Senders = str | Iterable[Site | str]
"""A kind (``"head"``, ``"attn"``, ``"mlp"``, ``"embed"``), or sites, or the strings they print as."""
Receivers = str | Site | Iterable[Site | str] | None
"""Sites, or the strings they print as; ``"logits"`` or None for the logits."""

KINDS = ("head", "attn", "mlp", "embed")


@dataclass(frozen=True)
class Route:
    """Senders, receivers, and what the MLPs between them do.

    Args:
        senders: each sends by itself.
        receivers: all receive together: states, MLPs, and queries, keys or values of heads; none means the
            logits.
        mlps: ``"freeze"`` the MLPs between, or ``"recompute"`` them.
        writes: the receivers as the engine writes them.
        parallel: whether attention and MLP run in parallel.
        layers: how many blocks there are.
    """

    senders: tuple[Site, ...]
    receivers: tuple[Site, ...]
    mlps: Mlps
    writes: tuple[Write, ...]
    parallel: bool
    layers: int

    @classmethod
    def of(cls, hm: HookedModel, senders: Senders, receivers: Receivers, *, mlps: Mlps = "freeze") -> Route:
        """Read and check what is asked.

        Args:
            hm: the model.
            senders: heads, whole attentions and MLPs, and ``embed``; each once, however often it is named.
            receivers: ``L9.head[3].q`` (``.k .v``; ``L9.kv[1].v`` under grouped queries; ``L9.head[3]`` for
                all that it has of its own; ``L9.attn`` for all heads), ``L9.mlp``, and ``L9.resid_pre``
                (``_mid _post``).
            mlps: ``"freeze"`` or ``"recompute"``.

        Raises:
            ScoresError: for an unknown `mlps`, or no senders or receivers.
            SiteError: for a site that the model lacks, or that cannot send or receive.

        Example:
            >>> route = Route.of(mu.world.model(), ["L0.mlp"], ["L2.head[0]"])
            >>> [str(site) for site in route.receivers]
            ['L2.head[0].q', 'L2.head[0].k', 'L2.head[0].v']
        """
        if mlps not in get_args(Mlps):
            raise ScoresError(one_of("mlps", mlps, get_args(Mlps)))
        sending = _senders(hm, senders)
        receiving = tuple(dict.fromkeys(each for site in _receivers(receivers) for each in _read(hm, site)))
        writes = writes_of(hm, receiving)
        return cls(sending, receiving, mlps, writes, hm.arch.parallel, hm.arch.shape.n_layers)

    def sends(self, site: Site) -> int:
        """When a component writes."""
        return -1 if site.layer is None else 2 * site.layer + (site.kind == "mlp")

    def reads(self, kind: str, layer: int) -> int:
        """When a kind of receiver in some layer reads."""
        late = {"mlp": not self.parallel, "resid_mid": True}.get(kind, False)
        return 2 * layer + 2 * (kind == "resid_post") + late

    @property
    def last(self) -> int:
        """When the last receiver reads."""
        return max((self.reads(write.kind, write.layer) for write in self.writes), default=2 * self.layers)

    @property
    def values(self) -> int | None:
        """The layer in which values alone are received, if that is all: patterns then stay as they are."""
        layers = {write.layer for write in self.writes}
        alone = len(layers) == 1 and all(write.kind == "v" for write in self.writes)
        return layers.pop() if alone else None

    @property
    def onward(self) -> tuple[Write, ...]:
        """What is written into the run once the receivers' part in it is known; none for the logits."""
        if self.values is None:
            return self.writes
        layer = self.values + 1
        after = Write(layer, "resid_pre", f"blocks.{layer}.hook_resid_pre")
        return (after,) if layer < self.layers else ()

    @property
    def between(self) -> tuple[int, ...]:
        """The layers whose MLPs some sender reaches and some receiver sees."""
        first = min(map(self.sends, self.senders))
        return tuple(m for m in range(self.layers) if first < self.reads("mlp", m) and 2 * m + 1 < self.last)

    def kept_by_run(self, parts: Parts) -> tuple[str, ...]:
        """The hook points that the patched run must keep.

        Args:
            parts: of the model.
        """
        names = [*self.kept_by_source(), *(write.name for write in self.writes)]
        for site in self.senders:
            if site.kind == "head" and (name := parts.unnormed(site.layer or 0)):
                names += [name, f"blocks.{site.layer}.hook_attn_out"]
        read = [write.layer for write in self.writes if write.kind in ("mlp", "resid_mid")]
        if self.mlps == "recompute":
            read += self.between
            names += [f"blocks.{layer}.hook_mlp_out" for layer in self.between]
        if self.values is not None:
            block = f"blocks.{self.values}."
            names += [f"{block}{kind}" for kind in ("attn.hook_pattern", "hook_attn_out", "hook_mlp_out")]
            names += [name for name in (parts.unnormed(self.values), *(w.name for w in self.onward)) if name]
        if not self.parallel:
            names += [f"blocks.{layer}.hook_attn_out" for layer in read]
        return tuple(dict.fromkeys([*names, *(self.frozen() if parts.reason else ())]))

    def kept_by_source(self) -> tuple[str, ...]:
        """The hook points that the other run must keep: what the senders write."""
        return tuple(dict.fromkeys(sender_point(site) for site in self.senders))

    def frozen(self) -> tuple[str, ...]:
        """The hook points of all that is held between the first sender and the last receiver."""
        first = min(map(self.sends, self.senders))
        names = []
        for layer in range(self.layers):
            if first < 2 * layer < self.last:
                names.append(f"blocks.{layer}.attn.hook_z")
            if self.mlps == "freeze" and first < 2 * layer + 1 < self.last:
                names.append(f"blocks.{layer}.hook_mlp_out")
        return tuple(names)


def sender_point(site: Site) -> str:
    """The hook point at which a sender writes."""
    part = {"head": "attn.hook_z", "attn": "hook_attn_out", "mlp": "hook_mlp_out"}
    return "hook_embed" if site.kind == "embed" else f"blocks.{site.layer}.{part[site.kind]}"


def _senders(hm: HookedModel, given: Senders) -> tuple[Site, ...]:
    found: list[Site] = []
    for each in [given] if isinstance(given, str) else given:
        found += _all(hm, each) if isinstance(each, str) and each in KINDS else [_site(each)]
    if not found:
        raise ScoresError(f"sites names one or more of {KINDS}, or sites of the model; not none")
    hm.sites.check(found)
    for site in found:
        if site.kind not in KINDS or site.part:
            raise SiteError(f"{site} cannot send: senders are heads, whole attn and mlp outputs, and embed")
    return tuple(dict.fromkeys(found))


def _all(hm: HookedModel, kind: str) -> list[Site]:
    if kind == "embed":
        return [Site("embed")]
    units: Iterable[int | None] = range(hm.arch.shape.n_heads) if kind == "head" else [None]
    return [Site(kind, layer, unit) for layer in range(hm.arch.shape.n_layers) for unit in units]


def _receivers(given: Receivers) -> list[Site]:
    if given is None or given == "logits":
        return []
    found = [given] if isinstance(given, str | Site) else list(given)
    if not found:
        raise ScoresError('receivers names sites of the model, or "logits"; not none')
    if "logits" in found:
        raise ScoresError(
            'the logits receive alone, since nothing comes after them; ask for receivers="logits" by itself'
        )
    return [_site(each) for each in found]


def _read(hm: HookedModel, site: Site) -> list[Site]:
    """What a receiver reads, piece by piece."""
    hm.sites.check([site])
    shape, layer, unit = hm.arch.shape, site.layer, site.index
    if site.kind == "attn":
        keys = "kv" if shape.grouped else "head"
        pieces = [Site("head", layer, h, "q") for h in range(shape.n_heads)]
        return pieces + [Site(keys, layer, g, part) for g in range(shape.n_kv_heads) for part in ("k", "v")]
    if site.kind == "head" and site.part is None:
        own = ("q",) if shape.grouped else ("q", "k", "v")
        return [Site("head", layer, unit, part) for part in own]
    if site.kind == "kv" and site.part is None:
        return [Site("kv", layer, unit, part) for part in ("k", "v")]
    if (site.kind == "mlp" and site.part) or site.part == "o" or site.kind in ("embed", "neuron", "pattern"):
        raise SiteError(
            f"{site} reads nothing from the residual stream: receivers are queries, keys and values of heads "
            "(L3.head[1].q), whole attn and mlp, states (L3.resid_pre) and logits"
        )
    return [site]


def _site(given: Site | str) -> Site:
    return Site.parse(given) if isinstance(given, str) else given
