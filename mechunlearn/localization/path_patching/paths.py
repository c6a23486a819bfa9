"""The paths of a change through the model: its senders, its receivers, and the MLPs between them.

1. The stream of L blocks is written and read at times 0 to 2L. In block l, attention reads and writes at 2l,
   and the MLP at 2l + 1. A component reads what was written before; the logits read at 2L.
2. Where attention and MLP run in parallel, the MLP reads at 2l as well.
3. So a sender reaches a receiver if it writes before the receiver reads. A component is between the two if it
   reads after the sender writes, and writes before the receiver reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, SiteError, one_of
from mechunlearn.localization.engine.block_functions import BlockFunctions
from mechunlearn.localization.engine.patches import Write, writes_of
from mechunlearn.models.hooked import HookedModel

Mlps = Literal["freeze", "recompute"]
Senders = str | Iterable[Site | str]
"""A kind (``"head"``, ``"attn"``, ``"mlp"``, ``"embed"``), or sites, or the strings they print as."""
Receivers = str | Site | Iterable[Site | str] | None
"""Sites, or the strings they print as; ``"logits"`` or None for the logits."""

KINDS = ("head", "attn", "mlp", "embed")


@dataclass(frozen=True)
class Paths:
    """The paths from each of several senders, patched by itself, to the same receivers.

    Receivers are states, MLPs, and queries, keys or values of heads, and ``writes`` are the same as writes of
    the engine; none of them means the logits. ``layers`` is the number of blocks.
    """

    senders: tuple[Site, ...]
    receivers: tuple[Site, ...]
    mlps: Mlps
    writes: tuple[Write, ...]
    parallel: bool
    layers: int

    @classmethod
    def of(cls, hm: HookedModel, senders: Senders, receivers: Receivers, *, mlps: Mlps = "freeze") -> Paths:
        """Read and check senders and receivers.

        Senders are heads, whole attentions and MLPs, and ``embed``; each counts once, however often it is
        named. Receivers are queries, keys or values (``L9.head[3].q``, ``.k``, ``.v``; ``L9.kv[1].v`` under
        grouped queries; ``L9.head[3]`` for all that belong to it alone; ``L9.attn`` for all heads), MLPs, and
        states. ScoresError is raised for an unknown `mlps`, or no senders or receivers; SiteError for a site
        that the model lacks, or that cannot send or receive.
        """
        if mlps not in get_args(Mlps):
            raise ScoresError(one_of("mlps", mlps, get_args(Mlps)))
        sites = (piece for site in _receivers(receivers) for piece in _pieces(hm, site))
        pieces = tuple(dict.fromkeys(sites))
        writes = writes_of(hm, pieces)
        return cls(_senders(hm, senders), pieces, mlps, writes, hm.arch.parallel, hm.arch.shape.n_layers)

    def write_time(self, site: Site) -> int:
        """The time at which a component writes; the embedding writes before all."""
        return -1 if site.layer is None else 2 * site.layer + (site.kind == "mlp")

    def read_time(self, kind: str, layer: int) -> int:
        """The time at which a kind of receiver in a layer reads."""
        late = {"mlp": not self.parallel, "resid_mid": True}.get(kind, False)
        return 2 * layer + 2 * (kind == "resid_post") + late

    @property
    def last_read(self) -> int:
        """The time at which the last receiver reads."""
        return max(
            (self.read_time(write.kind, write.layer) for write in self.writes), default=2 * self.layers
        )

    @property
    def value_layer(self) -> int | None:
        """The layer of the receivers, if all are values of one layer: then its patterns do not change."""
        layers = {write.layer for write in self.writes}
        alone = len(layers) == 1 and all(write.kind == "v" for write in self.writes)
        return layers.pop() if alone else None

    @property
    def rerun_writes(self) -> tuple[Write, ...]:
        """The writes from which the patched run goes on; none if the logits follow without a run."""
        if self.value_layer is None:
            return self.writes
        # The stream after that block follows by arithmetic as well, so the run goes on one block later.
        layer = self.value_layer + 1
        after = Write(layer, "resid_pre", f"blocks.{layer}.hook_resid_pre")
        return (after,) if layer < self.layers else ()

    @property
    def mlps_between(self) -> tuple[int, ...]:
        """The layers whose MLPs some sender reaches and some receiver reads."""
        first = min(map(self.write_time, self.senders))
        reached = (layer for layer in range(self.layers) if first < self.read_time("mlp", layer))
        return tuple(layer for layer in reached if 2 * layer + 1 < self.last_read)

    def run_names(self, functions: BlockFunctions) -> tuple[str, ...]:
        """The hook points whose activations are needed of the run that is patched."""
        names = [*self.source_names(), *(write.name for write in self.writes)]
        for site in self.senders:
            if site.kind == "head" and (name := functions.pre_norm_hook(site.layer or 0)):
                names += [name, f"blocks.{site.layer}.hook_attn_out"]
        read = [write.layer for write in self.writes if write.kind in ("mlp", "resid_mid")]
        if self.mlps == "recompute":
            read += self.mlps_between
            names += [f"blocks.{layer}.hook_mlp_out" for layer in self.mlps_between]
        if self.value_layer is not None:
            block = f"blocks.{self.value_layer}."
            names += [f"{block}{kind}" for kind in ("attn.hook_pattern", "hook_attn_out", "hook_mlp_out")]
            names += [write.name for write in self.rerun_writes]
            if name := functions.pre_norm_hook(self.value_layer):
                names.append(name)
        if not self.parallel:
            names += [f"blocks.{layer}.hook_attn_out" for layer in read]
        return tuple(dict.fromkeys([*names, *(self.held_names() if functions.reason else ())]))

    def source_names(self) -> tuple[str, ...]:
        """The hook points whose activations are needed of the other run: those at which senders write."""
        return tuple(dict.fromkeys(sender_point(site) for site in self.senders))

    def held_names(self) -> tuple[str, ...]:
        """The hook points whose activations are held between the first sender and the last receiver."""
        first = min(map(self.write_time, self.senders))
        names = []
        for layer in range(self.layers):
            if first < 2 * layer < self.last_read:
                names.append(f"blocks.{layer}.attn.hook_z")
            if self.mlps == "freeze" and first < 2 * layer + 1 < self.last_read:
                names.append(f"blocks.{layer}.hook_mlp_out")
        return tuple(names)


def sender_point(site: Site) -> str:
    """The hook point at which a sender writes."""
    part = {"head": "attn.hook_z", "attn": "hook_attn_out", "mlp": "hook_mlp_out"}
    return "hook_embed" if site.kind == "embed" else f"blocks.{site.layer}.{part[site.kind]}"


def _senders(hm: HookedModel, senders: Senders) -> tuple[Site, ...]:
    sites: list[Site] = []
    for each in [senders] if isinstance(senders, str) else senders:
        sites += _all(hm, each) if isinstance(each, str) and each in KINDS else [_site(each)]
    if not sites:
        raise ScoresError(f"sites names one or more of {KINDS}, or sites of the model; not none")
    hm.sites.check(sites)
    for site in sites:
        if site.kind not in KINDS or site.part:
            raise SiteError(f"{site} cannot send: senders are heads, whole attn and mlp outputs, and embed")
    return tuple(dict.fromkeys(sites))


def _all(hm: HookedModel, kind: str) -> list[Site]:
    if kind == "embed":
        return [Site("embed")]
    units: Iterable[int | None] = range(hm.arch.shape.n_heads) if kind == "head" else [None]
    return [Site(kind, layer, unit) for layer in range(hm.arch.shape.n_layers) for unit in units]


def _receivers(receivers: Receivers) -> list[Site]:
    if receivers is None or receivers == "logits":
        return []
    sites = [receivers] if isinstance(receivers, str | Site) else list(receivers)
    if not sites:
        raise ScoresError('receivers names sites of the model, or "logits"; not none')
    if "logits" in sites:
        raise ScoresError(
            'the logits receive alone, since nothing comes after them; ask for receivers="logits" by itself'
        )
    return [_site(each) for each in sites]


def _pieces(hm: HookedModel, site: Site) -> list[Site]:
    """The states, MLPs, queries, keys and values that a receiver consists of."""
    hm.sites.check([site])
    shape, layer, unit = hm.arch.shape, site.layer, site.index
    if site.kind == "attn":
        keys = "kv" if shape.grouped else "head"
        pieces = [Site("head", layer, h, "q") for h in range(shape.n_heads)]
        return pieces + [Site(keys, layer, g, part) for g in range(shape.n_kv_heads) for part in ("k", "v")]
    if site.kind == "head" and site.part is None:
        # Under grouped queries keys and values are those of a group, and not of the head.
        parts = ("q",) if shape.grouped else ("q", "k", "v")
        return [Site("head", layer, unit, part) for part in parts]
    if site.kind == "kv" and site.part is None:
        return [Site("kv", layer, unit, part) for part in ("k", "v")]
    if (site.kind == "mlp" and site.part) or site.part == "o" or site.kind in ("embed", "neuron", "pattern"):
        raise SiteError(
            f"{site} reads nothing from the residual stream: receivers are queries, keys and values of heads "
            "(L3.head[1].q), whole attn and mlp, states (L3.resid_pre) and logits"
        )
    return [site]


def _site(site: Site | str) -> Site:
    return Site.parse(site) if isinstance(site, str) else site
