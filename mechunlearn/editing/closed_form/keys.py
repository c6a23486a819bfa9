"""Key statistics: the second moment of what a matrix reads in running text.

``C = E[k kᵀ]``, not centred, stands for everything else the matrix remembers: a change ``Δ`` of it costs
``E‖Δ k‖² = tr(Δ C Δᵀ)``, so the directions that text uses most are the dearest to write along.

1. Texts come from any iterable, a few at a time; nothing is downloaded. Each is read as the model reads
   it, BOS included; padding is left out, and layers above the highest site are not run.
2. Sums are formed in float64, where the model is, and divided by the number of tokens at the end.
3. ``weighed`` solves ``(C + ρ·c·1) x = k`` with ``c`` the mean of C's diagonal: the ridge ρ has no unit. It
   stands in for directions that the texts never used, which otherwise would be free to write along.
4. ``freed`` instead leaves of a key only what lies in the directions that text hardly uses (AlphaEdit).
5. On disk it is one safetensors file, with the sites, the number of tokens, a hash, and the identity of the
   model it was made on: on other weights it warns, on other shapes it refuses.

Source: Meng et al. (2022), "Locating and Editing Factual Associations in GPT", appendix on the
covariance statistics; Fang et al. (2024), "AlphaEdit", section 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.core.checks import positive
from mechunlearn.core.hooks import Hook
from mechunlearn.core.sites.site import Site
from mechunlearn.core.tensor_files import TensorFormat
from mechunlearn.editing.closed_form.mlp_matrices import Memory, memories
from mechunlearn.errors import EditError, FactError, IdentityWarning
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.working_copy import working_copy

MAX_TOKENS = 512
RIDGE = 1e-3
FORMAT = TensorFormat(
    "key statistics",
    "mechunlearn.key_statistics/2",
    "make the key statistics again, or copy the file again",
)


@dataclass(frozen=True, eq=False)
class KeyStatistics:
    """The second moments of keys at some sites, and what they were made of.

    Args:
        moments: ``E[k kᵀ]`` of every site, in float64.
        tokens: how many keys were averaged at each.
        made_on: identity of the model that was run; empty if that is not to be compared.
        ridge: added to the diagonal when solving, in units of the diagonal's mean.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> found = key_statistics(hm, ["L1.mlp.out"], facts.text, progress=False)
        >>> found.tokens > 352, found.moments[mu.Site.parse("L1.mlp.out")].shape
        (True, torch.Size([352, 352]))
    """

    moments: Mapping[Site, Float[Tensor, "d_mlp d_mlp"]]
    tokens: int
    made_on: str
    ridge: float | int = RIDGE

    def __repr__(self) -> str:
        sites = ", ".join(map(str, self.moments))
        return f"KeyStatistics({sites}; {self.tokens:,} tokens, ridge {self.ridge:g}, of {self.made_on})"

    def weighed(self, site: Site, keys: Float[Tensor, "fact d_mlp"]) -> Float[Tensor, "fact d_mlp"]:
        """``C⁻¹ k`` of keys: the cheapest direction to write along that a key answers to.

        Args:
            site: one of ``moments``.
            keys: in float64.

        Raises:
            EditError: the moment is singular.
        """
        moment = self.moments[site].to(keys.device)
        moment = moment + self.ridge * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
        factor, failed = torch.linalg.cholesky_ex(moment)
        solved: Tensor = torch.cholesky_solve(keys.T, factor).T
        left = (solved @ moment - keys).norm() / keys.norm()
        # A matrix that is singular but for rounding passes the factorization; what it solves does not.
        if bool(failed) or not bool(left < 1e-6):
            raise EditError(
                f"the key statistics of {site} are singular: {self.tokens:,} tokens for {len(moment):,} "
                f"neurons, and ridge {self.ridge:g}; give more texts, or a ridge above 0 such as {RIDGE:g}"
            )
        return solved

    def freed(
        self, site: Site, keys: Float[Tensor, "fact d_mlp"], threshold: float | int
    ) -> Float[Tensor, "fact d_mlp"]:
        """What of keys lies where text has next to nothing: projected on C's null space.

        Args:
            site: one of ``moments``.
            keys: in float64.
            threshold: eigenvalues of C below it count as null; the ridge plays no part.

        Raises:
            EditError: no eigenvalue is below the threshold.
        """
        sizes, directions = torch.linalg.eigh(self.moments[site].to(keys.device))
        free = directions[:, sizes < threshold]
        if not free.shape[1]:
            raise EditError(
                f"no eigenvalue of the key statistics of {site} is below null_space={threshold:g}: they go "
                f"from {float(sizes[0]):.3g} to {float(sizes[-1]):.3g}; give a threshold between"
            )
        projected: Tensor = keys @ free @ free.T
        return projected

    def check(self, hm: HookedModel, found: Iterable[Memory]) -> None:
        """Refuse what these statistics say nothing about, and warn if they are of other weights.

        Args:
            hm: the model about to be edited.
            found: the matrices about to be changed.

        Raises:
            EditError: a site is missing, or has another number of neurons.

        Warns:
            IdentityWarning: the model's weights are not those the statistics were made on.
        """
        for memory in found:
            if memory.site not in self.moments:
                raise EditError(
                    f"the key statistics are of {', '.join(map(str, self.moments))} and say nothing of "
                    f"{memory.site}; make them with key_statistics(hm, localization, texts)"
                )
            has, needs = len(self.moments[memory.site]), hm.arch.shape.d_mlp
            if has != needs:
                raise EditError(
                    f"the key statistics of {memory.site} are of {has} neurons and this model has {needs}; "
                    "make them anew on this model"
                )
        if self.made_on and self.made_on != (here := hm.identity):
            warnings.warn(
                f"the key statistics were made on a model with other weights ({self.made_on}, not {here}). "
                "After a few edits that does little harm, and dataclasses.replace(statistics, made_on='') "
                "says that it is meant; else make them anew",
                IdentityWarning,
                stacklevel=3,
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; it appears whole or not at all.

        Args:
            path: of the file.
        """
        facts = {"made_on": self.made_on, "tokens": str(self.tokens), "ridge": repr(float(self.ridge))}
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        FORMAT.write(target, {str(site): moment for site, moment in self.moments.items()}, facts)

    @classmethod
    def load(cls, path: str | Path) -> KeyStatistics:
        """Read what :meth:`save` wrote.

        Whether they fit a model is seen when they are used; see :meth:`check`.

        Args:
            path: of the file.

        Raises:
            DataError: the file is missing, cut short, altered or of another kind.
        """
        tensors, facts = FORMAT.read(Path(path))
        moments = {site: tensors[str(site)] for site in sorted(map(Site.parse, tensors))}
        return cls(moments, int(facts["tokens"]), facts["made_on"], float(facts["ridge"]))


def key_statistics(
    hm: HookedModel,
    sites: Iterable[Site | str],
    texts: Iterable[str],
    *,
    ridge: float | int = RIDGE,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = 16,
    progress: bool = True,
) -> KeyStatistics:
    """Measure what the matrices out of some MLPs read in running text.

    Args:
        hm: the model, which stays as it is.
        sites: a localization, or any ``mlp.out`` sites.
        texts: any iterable of texts, read once and a few at a time; blank ones are passed over.
        ridge: added to the diagonal when solving, in units of the diagonal's mean. Sources with 100,000
            texts use none; with few texts it is what keeps unused directions from being written along.
        max_tokens: longer texts are cut there (and at the model's own limit), BOS included.
        batch_size: texts per forward pass.
        progress: whether to show a bar.

    Raises:
        SiteError: a site is not of this model, or has no closed form.
        LocalizationError: no site is given.
        FactError: there is no text, or something is not a text.
        EditError: the ridge is negative.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> key_statistics(hm, ["L2.mlp.out", "L3.mlp.out"], facts.text[:20], progress=False)
        KeyStatistics(L2.mlp.out, L3.mlp.out; ... tokens, ridge 0.001, of ...)

    Source: Meng et al. (2022), with 100,000 texts of Wikipedia.
    """
    from tqdm.auto import tqdm

    found = memories(hm, sites)
    positive(EditError, max_tokens=max_tokens, batch_size=batch_size)
    if not ridge >= 0:
        raise EditError(f"ridge is {ridge!r}; give 0 or more, such as {RIDGE:g}")
    limit = getattr(hm.hf.config.get_text_config(), "max_position_embeddings", None) or max_tokens
    width = hm.arch.shape.d_mlp
    sums = {m.site: torch.zeros(width, width, dtype=torch.float64, device=exact(hm)) for m in found}
    work, tokens = working_copy(hm), 0
    with tqdm(disable=not progress, desc="key statistics", unit=" tokens", leave=False) as bar:
        for batch in _batches(texts, batch_size):
            ids, mask = hm.encode(batch)
            kept = slice(0, min(max_tokens, limit))
            _add(work, found, ids[:, kept], mask[:, kept], sums)
            tokens += (read := int(mask[:, kept].sum()))
            bar.update(read)
    if not tokens:
        raise FactError("there is no text to make key statistics of; give texts like those to be kept")
    if tokens < width and ridge == 0:
        warnings.warn(
            f"{tokens:,} tokens for {width:,} neurons: without a ridge the key statistics are singular; give "
            f"more texts, or a ridge such as {RIDGE:g}",
            stacklevel=2,
        )
    return KeyStatistics({s: (total / tokens).cpu() for s, total in sums.items()}, tokens, hm.identity, ridge)


def require_statistics(statistics: Any) -> None:
    """Refuse what are no key statistics.

    Args:
        statistics: what was given as such.

    Raises:
        EditError: it is something else.
    """
    if not isinstance(statistics, KeyStatistics):
        raise EditError(
            f"the key statistics are {statistics!r}; make them with key_statistics(hm, localization, texts), "
            "or load a file of them with KeyStatistics.load(path)"
        )


def exact(hm: HookedModel) -> torch.device:
    """Where sums in float64 are formed: with the model, unless its device cannot."""
    return torch.device("cpu") if hm.device.type == "mps" else hm.device


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    if isinstance(texts, str):
        raise FactError(f"the texts are one text, {texts[:40]!r}; give a list of texts, [text]")
    remaining = iter(texts)
    while given := list(islice(remaining, size)):
        for text in given:
            if not isinstance(text, str):
                raise FactError(f"{text!r} is not a text; give strings, as in (row['text'] for row in rows)")
        if batch := [text for text in given if text.strip()]:
            yield batch


@torch.no_grad()
def _add(
    hm: HookedModel,
    found: Iterable[Memory],
    tokens: Int[Tensor, "row pos"],
    mask: Int[Tensor, "row pos"],
    sums: Mapping[Site, Tensor],
) -> None:
    """Run some rows as far as the highest site, and add their keys' products to the sums."""

    def adding(memory: Memory) -> Hook:
        def add(keys: Tensor, hook: Any = None) -> None:
            total = sums[memory.site]
            rows = keys[mask.bool().to(keys.device)].to(total)
            total.addmm_(rows.T, rows)

        return Hook(memory.keys, add)

    hooks = [adding(memory) for memory in found]
    top = max(memory.layer for memory in found) + 1
    hm.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks, return_type=None, stop_at_layer=top)
