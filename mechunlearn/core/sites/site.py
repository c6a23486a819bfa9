"""One place in a model, and how it is written.

1. One table, ``_FORMS``, holds the written form of each kind. Printing fills the form in, parsing matches it
   as a regular expression, and sites sort in the order of the table, in which a block computes.
2. One property, ``Site.wider``, lists the coarser sites that contain a site's weights. Two sites overlap when
   they are equal, or when one is among the wider sites of the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import total_ordering

from mechunlearn.errors import SiteError, one_of

_FORMS = {
    "embed": "embed",
    "resid_pre": "L{layer}.resid_pre",
    "pattern": "L{layer}.pattern[{index}]",
    "attn": "L{layer}.attn",
    "head": "L{layer}.head[{index}]",
    "kv": "L{layer}.kv[{index}]",
    "resid_mid": "L{layer}.resid_mid",
    "mlp": "L{layer}.mlp",
    "neuron": "L{layer}.mlp.neuron[{index}]",
    "resid_post": "L{layer}.resid_post",
}
_ORDER = {kind: rank for rank, kind in enumerate(_FORMS)}
_PARTS = {"head": ("q", "k", "v", "o"), "kv": ("k", "v"), "mlp": ("in", "gate", "out")}
_STATES = frozenset({"resid_pre", "resid_mid", "resid_post", "pattern"})
_GRAMMAR = (
    "embed, L5.attn, L5.head[2], L5.head[2].q (.k .v .o), L5.kv[1] (.k .v), L3.mlp, "
    "L3.mlp.in (.gate .out), L3.mlp.neuron[7], L4.resid_pre (_mid _post) or L4.pattern[2]"
)


def _expression(kind: str) -> re.Pattern[str]:
    text = re.escape(_FORMS[kind])
    for field in ("layer", "index"):
        # No leading zeros: one site has one spelling.
        text = text.replace(re.escape(f"{{{field}}}"), f"(?P<{field}>0|[1-9][0-9]*)")
    parts = "|".join(_PARTS.get(kind, ()))
    return re.compile(text + (rf"(?:\.(?P<part>{parts}))?" if parts else ""))


_EXPRESSIONS = {kind: _expression(kind) for kind in _FORMS}


@total_ordering
@dataclass(frozen=True, slots=True, repr=False)
class Site:
    """One place in a model.

    Weight sites hold parameters: ``attn`` (queries, keys, values, output), ``head`` (the same of one head;
    under grouped queries its queries and output only), ``kv`` (keys and values of one group), ``mlp``,
    ``neuron``, ``embed``. State sites hold none: ``resid_pre``, ``resid_mid``, ``resid_post``, ``pattern``.
    A bias belongs to the site whose output it is added to: an output bias to the whole ``attn`` or ``mlp``,
    never to a head or neuron. Sites sort by layer, then in the order in which a block computes.

    Args:
        kind: the kind of site; see above.
        layer: block number from 0; None for ``embed`` alone.
        index: number of the head, group or neuron; None for the other kinds.
        part: ``q k v o`` of a head, ``k v`` of a group, ``in gate out`` of an MLP; None for the whole.

    Raises:
        SiteError: if the fields do not make a site.

    Example:
        >>> site = Site.parse("L5.head[2].q")
        >>> site.layer, site.kind, site.index, site.part
        (5, 'head', 2, 'q')
        >>> print(Site("neuron", 3, 7))
        L3.mlp.neuron[7]
    """

    kind: str
    layer: int | None = None
    index: int | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _FORMS:
            raise SiteError(one_of("the kind of a site", self.kind, _FORMS))
        for field, value in (("layer", self.layer), ("index", self.index)):
            needed = f"{{{field}}}" in _FORMS[self.kind]
            if needed != (value is not None) or (value is not None and value < 0):
                expected = f"a number from 0 as its {field}" if needed else f"no {field}"
                raise SiteError(f"a site of kind {self.kind!r} takes {expected}; not {value!r}")
        if self.part is not None and self.part not in _PARTS.get(self.kind, ()):
            parts = " ".join(_PARTS.get(self.kind, ())) or "none"
            raise SiteError(f"parts of a site of kind {self.kind!r} are: {parts}; not {self.part!r}")

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site from the string it prints as.

        Raises:
            SiteError: if the string is no site; the message suggests the nearest one.
        """
        for kind, expression in _EXPRESSIONS.items():
            if match := expression.fullmatch(text):
                named = match.groupdict()
                layer, index = (None if named.get(n) is None else int(named[n]) for n in ("layer", "index"))
                return cls(kind, layer, index, named.get("part"))
        raise SiteError(f"{text!r} is not a site; {_suggestion(text)}sites are written {_GRAMMAR}")

    def __str__(self) -> str:
        form = _FORMS[self.kind].format(layer=self.layer, index=self.index)
        return form if self.part is None else f"{form}.{self.part}"

    def __repr__(self) -> str:
        return f"Site.parse({str(self)!r})"

    def __lt__(self, other: object) -> bool:
        return self.key < other.key if isinstance(other, Site) else NotImplemented

    @property
    def key(self) -> tuple[int, int, int, int]:
        """The sort key: layer, kind, index, part."""
        part = -1 if self.part is None else _PARTS[self.kind].index(self.part)
        return (
            -1 if self.layer is None else self.layer,
            _ORDER[self.kind],
            -1 if self.index is None else self.index,
            part,
        )

    @property
    def has_weights(self) -> bool:
        """Whether the site holds parameters, so that a localization may contain it."""
        return self.kind not in _STATES

    @property
    def column(self) -> str:
        """The site's name within its layer, which labels a plot's column: ``head[2]`` of ``L5.head[2]``."""
        return str(self).partition(".")[2] or self.kind

    @property
    def wider(self) -> tuple[Site, ...]:
        """The coarser sites that hold some of this site's weights, the finest first."""
        if self.kind == "neuron":
            return (*(Site("mlp", self.layer, part=part) for part in _PARTS["mlp"]), Site("mlp", self.layer))
        parent = () if self.part is None else (Site(self.kind, self.layer, self.index),)
        return (*parent, Site("attn", self.layer)) if self.kind in ("head", "kv") else parent

    def overlaps(self, site: Site) -> bool:
        """Whether some parameter belongs to both sites; state sites hold none."""
        return self.has_weights and (self == site or site in self.wider or self in site.wider)


def _suggestion(text: str) -> str:
    """The valid site nearest to a text, with the numbers of the text."""
    # The first number of a site is its layer, the second its index.
    layer, index, *_ = (*map(int, re.findall("[0-9]+", text)), 0, 0)
    sites = {kind: form.format(layer=layer, index=index) for kind, form in _FORMS.items()}
    parts = [f"{sites[kind]}.{part}" for kind in _PARTS for part in _PARTS[kind]]
    near = get_close_matches(text, [*sites.values(), *parts], n=1)
    return f"did you mean {near[0]!r}? " if near else ""
