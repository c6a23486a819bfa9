"""Sites and positions to patch: kinds of sites, windows of layers, and positions by name.

1. A kind (``"resid_pre"``, ``"mlp"``, ``"head"``, ``"head.q"``, …) stands for all its sites in the model.
   Sites can be given one by one, and sets of sites to be written together under the site that names them.
2. A window writes the same kind in neighbouring layers together, as many before the centre as after it (one
   more before where it is even), cut at the ends of the model.
3. Positions are the token groups of the facts, every position, or all of them at once; each of these is a
   *place*. What follows the prompt (the tokens of an answer that has several) is where the answer is read,
   and belongs to the last token.
4. Estimates are made for every token at once, and added up over the tokens of a place. Before the first token
   in which two prompts differ nothing counts, since there their runs are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.core.checks import positive
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
    """List the sites that are written together, window included, by the site that names them.

    ScoresError is raised for an unknown kind, or nothing at all; SiteError for a site that the model lacks.
    """
    positive(ScoresError, window=window)
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
    sites = [Site(name, layer, unit, part or None) for layer in range(shape.n_layers) for unit in units]
    hm.arch.hooks(sites[0])  # refuses a kind that the model does not have, such as resid_mid
    return sites


def layer_sites(hm: HookedModel, kinds: str | Sequence[str], allowed: Sequence[str]) -> list[Site]:
    """List all sites of some kinds, layer by layer, in the order of the kinds.

    ScoresError is raised for a kind that is not ``allowed``, for none, or for one that is named twice.
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


def groups_of(answers: AnswerRows) -> Int[Tensor, "row pos"]:
    """The group of every token, as its index in `GROUPS`; an answer's tokens belong to the prompt's last."""
    batch = answers.batch
    groups = token_groups(batch)
    position = torch.arange(groups.shape[1], device=groups.device)
    after = (position > batch.end[:, None]) & batch.mask.bool()
    return torch.where(after, groups.gather(1, batch.end[:, None]), groups)


def places_of(answers: AnswerRows, positions: Positions) -> int:
    """Count the places; ScoresError for a word other than ``"groups"``, ``"each"`` or ``"all"``."""
    if positions not in ("groups", "each", "all"):
        raise ScoresError(one_of("positions", positions, ["groups", "each", "all"]))
    each = int(answers.batch.end.max()) + 1
    return {"groups": len(GROUPS), "each": each, "all": 1}[positions]


def where_of(answers: AnswerRows, positions: Positions, *, places: int) -> Bool[Tensor, "place row pos"]:
    """The positions of every place in every row, as a mask; `places` counts those of all parts."""
    mask = answers.batch.mask.bool()
    if positions == "all":
        return mask[None]
    if positions == "groups":
        groups = groups_of(answers)
        return torch.stack([groups == number for number in range(len(GROUPS))])
    # Tokens of the answer belong to the last token of the prompt.
    number = torch.arange(places, device=mask.device)[:, None, None]
    position = torch.arange(mask.shape[1], device=mask.device).minimum(answers.batch.end[:, None])
    return (number == position) & mask


def labels_of(answers: AnswerRows, positions: Positions) -> tuple[str, ...] | None:
    """Label the places: groups, or tokens where all rows have the same token there, else its index."""
    batch, width = answers.batch, places_of(answers, positions)
    if positions == "all":
        return None
    if positions == "groups":
        return GROUPS
    prompts = [row[: end + 1] for row, end in zip(batch.strings, batch.end.tolist(), strict=True)]
    tokens = [{row[p] for row in prompts if p < len(row)} for p in range(width)]
    return tuple(next(iter(each)) if len(each) == 1 else str(p) for p, each in enumerate(tokens))


def fact_tokens_of(answers: AnswerRows, positions: Positions) -> list[list[str]] | None:
    """The tokens of every fact's prompt, padded with empty strings; None unless each has a place."""
    if positions != "each":
        return None
    width = places_of(answers, positions)
    rows = zip(answers.fact.tolist(), answers.batch.strings, answers.batch.end.tolist(), strict=True)
    prompts = {fact: list(strings[: end + 1]) for fact, strings, end in rows}
    return [prompts[fact] + [""] * (width - len(prompts[fact])) for fact in sorted(prompts)]


def shares_of(pairs: Pairs, positions: Positions, *, places: int) -> Float[Tensor, "row pos place"]:
    """The weight of each token's effect in each place: 1 or 0."""
    where = where_of(pairs.answers, positions, places=places) & pairs.differs
    return where.permute(1, 2, 0).float()


@dataclass(frozen=True, eq=False)
class Totals:
    """Sums over the rows of each fact; not-a-number where a fact has no token at a place."""

    values: Float[Tensor, "fact *scored place"]

    @classmethod
    def of(cls, answers: AnswerRows, positions: Positions, *shape: int) -> Totals:
        """Start at 0; `shape` is that of the scores of one fact at one place."""
        places = places_of(answers, positions)
        row, index = where_of(answers, positions, places=places).any(-1).T.cpu().nonzero(as_tuple=True)
        values = torch.full((int(answers.fact.max()) + 1, places), torch.nan, dtype=torch.float64)
        values[answers.fact[row], index] = 0.0
        spread = values.reshape(len(values), *(1,) * len(shape), places).expand(-1, *shape, -1)
        return cls(spread.clone())

    @property
    def places(self) -> int:
        """The number of places."""
        return self.values.shape[-1]

    def add(self, part: AnswerRows, effects: Float[Tensor, "row *scored place"]) -> None:
        """Add the effects of some rows to their facts."""
        self.values.index_add_(0, part.fact, effects.detach().cpu().double())
