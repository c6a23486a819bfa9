"""Where to patch: named kinds of sites, windows of layers, and positions by name.

1. A kind (``"resid_pre"``, ``"mlp"``, ``"head"``, ``"head.q"``, …) stands for all its sites in the model.
   Sites can be given one by one, and sets of sites to be written together under the site that names them.
2. A window writes the same kind in neighbouring layers together, as many before the centre as after it (one
   more before where it is even), cut at the ends of the model.
3. Positions are the token groups of the facts, every position, or all of them at once: the places. What
   follows the prompt (the tokens of an answer that has several) is where the answer is read, and belongs to
   the last token.
4. Estimates are made for every token at once, and each token's counts to the places it belongs to. Before the
   first token in which two prompts differ nothing counts, for there their runs are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, SiteError, one_of
from mechunlearn.localization.patching.answer_metrics import AnswerRows
from mechunlearn.localization.patching.pairs import Pairs
from mechunlearn.models.encoding.batch import GROUPS, token_groups
from mechunlearn.models.hooked import HookedModel

Positions = Literal["groups", "each", "all"]
Component = Literal["attn", "mlp", "head"]
Sites = str | Sequence[str] | Iterable[Site] | Mapping[Site, Iterable[Site]]
KINDS = (
    "resid_pre", "resid_mid", "resid_post", "attn", "mlp", "head", "head.q", "head.k", "head.v", "pattern",
)  # fmt: skip


def interventions(hm: HookedModel, sites: Sites, *, window: int = 1) -> dict[Site, tuple[Site, ...]]:
    """Say what is written together under which site's name.

    Args:
        hm: the model.
        sites: a kind or several, sites, or sets of sites by the site that names them.
        window: neighbouring layers written together.

    Raises:
        ScoresError: for an unknown kind, or nothing at all.
        SiteError: the model does not have a site.

    Example:
        >>> hm = mu.world.model()
        >>> [str(site) for site in interventions(hm, "mlp", window=3)[mu.Site("mlp", 0)]]
        ['L0.mlp', 'L1.mlp']
    """
    if window < 1:
        raise ScoresError(f"window must be above zero; not {window!r}")
    if isinstance(sites, Mapping):
        named = {site: tuple(together) for site, together in sites.items()}
    else:
        listed = [sites] if isinstance(sites, str) else list(sites)
        named = {}
        for item in listed:
            named |= {site: (site,) for site in (_named(hm, item) if isinstance(item, str) else [item])}
    if not named or not all(named.values()):
        raise ScoresError(f"sites names one or more of {KINDS}, or sites of the model; not {sites!r}")
    hm.sites.check([*named, *(site for together in named.values() for site in together)])
    last = hm.arch.shape.n_layers - 1
    return {site: _windowed(together, window, last) for site, together in named.items()}


def _named(hm: HookedModel, kind: str) -> list[Site]:
    """The sites of a kind, or the one site that the string is."""
    if kind not in KINDS:
        try:
            return [Site.parse(kind)]
        except SiteError as error:
            raise ScoresError(one_of("sites", kind, KINDS) + ", or sites such as 'L3.mlp'") from error
    shape = hm.arch.shape
    name, _, part = kind.partition(".")
    grouped = shape.grouped and part in ("k", "v")
    units: Sequence[int | None] = [None]
    if name in ("head", "pattern"):
        units = range(shape.n_kv_heads if grouped else shape.n_heads)
    name = "kv" if grouped else name
    found = [Site(name, layer, unit, part or None) for layer in range(shape.n_layers) for unit in units]
    hm.arch.hooks(found[0])
    return found


def layer_sites(hm: HookedModel, kinds: str | Sequence[str], allowed: Sequence[str]) -> list[Site]:
    """List all sites of some kinds, layer by layer, in the order of the kinds.

    Args:
        hm: the model.
        kinds: a kind or several.
        allowed: the kinds that the verb can use.

    Raises:
        ScoresError: for another kind, none, or one that is named twice.

    Example:
        >>> [str(site) for site in layer_sites(mu.world.model(), ("attn", "mlp"), KINDS)[:3]]
        ['L0.attn', 'L0.mlp', 'L1.attn']
    """
    chosen = [kinds] if isinstance(kinds, str) else list(kinds)
    for kind in chosen:
        if kind not in allowed:
            raise ScoresError(one_of("sites", kind, allowed) + ", or a tuple of them")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ScoresError(f"sites must name one or more different kinds of {tuple(allowed)}; not {kinds!r}")
    every = [_named(hm, kind) for kind in chosen]
    return [
        site for n in range(hm.arch.shape.n_layers) for sites in every for site in sites if site.layer == n
    ]


def _windowed(together: tuple[Site, ...], window: int, last: int) -> tuple[Site, ...]:
    if window == 1:
        return together
    if any(site.layer is None for site in together):
        raise SiteError("a window needs sites that lie in a layer; leave out embed")
    reach = range(-(window // 2), (window + 1) // 2)
    wide = [(site, (site.layer or 0) + step) for site in together for step in reach]
    near = [Site(site.kind, layer, site.index, site.part) for site, layer in wide if 0 <= layer <= last]
    return tuple(dict.fromkeys(near))


def groups_of(asked: AnswerRows) -> Int[Tensor, "row pos"]:
    """The group of every token, of `GROUPS`; what is read after the prompt belongs to its last token."""
    batch = asked.batch
    groups = token_groups(batch)
    position = torch.arange(groups.shape[1], device=groups.device)
    after = (position > batch.end[:, None]) & batch.mask.bool()
    return torch.where(after, groups.gather(1, batch.end[:, None]), groups)


def places_of(asked: AnswerRows, positions: Positions) -> int:
    """How many places there are.

    Raises:
        ScoresError: for a word other than ``"groups"``, ``"each"`` or ``"all"``.
    """
    if positions not in ("groups", "each", "all"):
        raise ScoresError(one_of("positions", positions, ["groups", "each", "all"]))
    each = int(asked.batch.end.max()) + 1
    return {"groups": len(GROUPS), "each": each, "all": 1}[positions]


def where_of(asked: AnswerRows, positions: Positions, *, places: int) -> Bool[Tensor, "place row pos"]:
    """The positions that every place means in every row.

    Args:
        asked: the rows.
        positions: ``"groups"``, ``"each"`` or ``"all"``.
        places: how many there are among all rows; see `places_of`.
    """
    mask = asked.batch.mask.bool()
    if positions == "all":
        return mask[None]
    if positions == "groups":
        groups = groups_of(asked)
        return torch.stack([groups == number for number in range(len(GROUPS))])
    number = torch.arange(places, device=mask.device)[:, None, None]
    position = torch.arange(mask.shape[1], device=mask.device).minimum(asked.batch.end[:, None])
    return (number == position) & mask


def labels_of(asked: AnswerRows, positions: Positions) -> tuple[str, ...] | None:
    """What the places are called: groups, or tokens where all rows have the same ones there."""
    batch, width = asked.batch, places_of(asked, positions)
    if positions == "all":
        return None
    if positions == "groups":
        return GROUPS
    prompts = [row[: end + 1] for row, end in zip(batch.strings, batch.end.tolist(), strict=True)]
    strings = [{row[p] for row in prompts if p < len(row)} for p in range(width)]
    return tuple(next(iter(some)) if len(some) == 1 else str(p) for p, some in enumerate(strings))


def shares_of(pairs: Pairs, positions: Positions, *, places: int) -> Float[Tensor, "row pos place"]:
    """How much each token's effect counts to each place: 1, or 0.

    Args:
        pairs: the rows.
        positions: ``"groups"``, ``"each"`` or ``"all"``.
        places: how many there are among all rows; see `places_of`.
    """
    where = where_of(pairs.asked, positions, places=places) & pairs.differs
    return where.permute(1, 2, 0).float()


@dataclass(frozen=True, eq=False)
class Totals:
    """What the rows of each fact add up to.

    Args:
        values: a number per fact, whatever is scored, and place; not-a-number where a fact has no token.
    """

    values: Float[Tensor, "fact *scored place"]

    @classmethod
    def of(cls, asked: AnswerRows, positions: Positions, *shape: int) -> Totals:
        """Nothing added up yet.

        Args:
            asked: all rows.
            positions: ``"groups"``, ``"each"`` or ``"all"``.
            shape: of what is scored.

        Raises:
            ScoresError: for unknown `positions`.
        """
        places = places_of(asked, positions)
        row, place = where_of(asked, positions, places=places).any(-1).T.cpu().nonzero(as_tuple=True)
        values = torch.full((int(asked.fact.max()) + 1, places), torch.nan, dtype=torch.float64)
        values[asked.fact[row], place] = 0.0
        spread = values.reshape(len(values), *(1,) * len(shape), places).expand(-1, *shape, -1)
        return cls(spread.clone())

    @property
    def places(self) -> int:
        """How many places there are."""
        return self.values.shape[-1]

    def add(self, part: AnswerRows, effects: Float[Tensor, "row *scored place"]) -> None:
        """Add the effects of some rows to their facts."""
        self.values.index_add_(0, part.fact, effects.detach().cpu().double())
