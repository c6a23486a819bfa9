"""Key statistics: the second moment of a matrix's inputs in running text.

``C = E[k kᵀ]``, not centred, describes the keys whose values should be preserved: a change ``Δ`` of the
matrix changes their values by ``E‖Δ k‖² = tr(Δ C Δᵀ)``, so directions that are frequent in text are the most
expensive ones to change.

1. Texts are read in batches, as the model reads them: BOS included, padding left out. Blocks above the
   highest site are not run. Sums are computed in float64 and divided by the number of tokens at the end.
2. ``weighed`` solves ``(C + ρ·c·1) x = k`` with ``c`` the mean of C's diagonal, so the ridge ρ has no unit.
   The ridge covers directions that never occur in the texts, which otherwise would cost nothing.
3. ``freed`` instead projects a key on the directions that hardly occur in text (AlphaEdit).
4. The file holds the identity of the model: on other weights the statistics cause a warning, on other shapes
   an error.

Source: Meng et al. (2022), "Locating and Editing Factual Associations in GPT", appendix on the
covariance statistics; Fang et al. (2024), "AlphaEdit", section 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from mechunlearn.core.texts import stream_of
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
    """The second moments of the keys at some sites, and the model and data they were computed from.

    Args:
        moments: ``E[k kᵀ]`` of every site, in float64.
        tokens: number of keys averaged at each site.
        made_on: identity of the model that was run; empty to skip the comparison with the model edited.
        ridge: added to the diagonal when solving, in units of the diagonal's mean.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> statistics = key_statistics(hm, ["L1.mlp.out"], facts.text, progress=False)
        >>> statistics.tokens > 352, statistics.moments[mu.Site.parse("L1.mlp.out")].shape
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
        """``C⁻¹ k`` of keys, with the ridge added to C: the cheapest direction to write along for each key.

        Args:
            site: one of ``moments``.
            keys: one row per fact, in float64.

        Raises:
            EditError: the moment is singular.
        """
        moment = self.moments[site].to(keys.device)
        moment = moment + self.ridge * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
        factor, failed = torch.linalg.cholesky_ex(moment)
        solved: Tensor = torch.cholesky_solve(keys.T, factor).T
        residual = (solved @ moment - keys).norm() / keys.norm()
        # Cholesky may succeed on a matrix that is regular only through rounding; the residual shows it.
        # "not <" also refuses nan.
        if bool(failed) or not bool(residual < 1e-6):
            raise EditError(
                f"the key statistics of {site} are singular: {self.tokens:,} tokens for {len(moment):,} "
                f"neurons, and ridge {self.ridge:g}; give more texts, or a ridge above 0 such as {RIDGE:g}"
            )
        return solved

    def freed(
        self, site: Site, keys: Float[Tensor, "fact d_mlp"], threshold: float | int
    ) -> Float[Tensor, "fact d_mlp"]:
        """Project keys on the null space of C, the directions that hardly occur in text.

        Args:
            site: one of ``moments``.
            keys: one row per fact, in float64.
            threshold: eigenvalues of C below it count as 0; the ridge is not used.

        Raises:
            EditError: no eigenvalue is below the threshold.
        """
        eigenvalues, directions = torch.linalg.eigh(self.moments[site].to(keys.device))
        null = directions[:, eigenvalues < threshold]
        if not null.shape[1]:
            raise EditError(
                f"no eigenvalue of the key statistics of {site} is below null_space={threshold:g}: they go "
                f"from {float(eigenvalues[0]):.3g} to {float(eigenvalues[-1]):.3g}; give a threshold between"
            )
        projected: Tensor = keys @ null @ null.T
        return projected

    def check(self, hm: HookedModel, found: Iterable[Memory]) -> None:
        """Refuse sites that these statistics do not cover, and warn if they were computed on other weights.

        Args:
            hm: model to be edited.
            found: matrices to be changed.

        Raises:
            EditError: a site is missing, or has another number of neurons.

        Warns:
            IdentityWarning: the model's weights are not those the statistics were computed on.
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
        """Write one safetensors file, atomically; missing folders are created."""
        metadata = {"made_on": self.made_on, "tokens": str(self.tokens), "ridge": repr(float(self.ridge))}
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        FORMAT.write(target, {str(site): moment for site, moment in self.moments.items()}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> KeyStatistics:
        """Read a file that :meth:`save` wrote; :meth:`check` later compares it with a model.

        Raises:
            DataError: the file is missing, truncated, altered or of another kind.
        """
        tensors, metadata = FORMAT.read(Path(path))
        moments = {site: tensors[str(site)] for site in sorted(map(Site.parse, tensors))}
        return cls(moments, int(metadata["tokens"]), metadata["made_on"], float(metadata["ridge"]))


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
    """Compute the second moments of the keys of some MLP output matrices in running text.

    Args:
        hm: the model; it is not changed.
        sites: a localization, or any ``mlp.out`` sites.
        texts: any iterable of texts, read once in batches; blank ones are skipped.
        ridge: added to the diagonal when solving, in units of the diagonal's mean. The authors, with 100,000
            texts, use none; with few texts it keeps edits out of directions that never occur.
        max_tokens: longer texts are truncated to this length (and to the model's own limit), BOS included.
        batch_size: texts per forward pass.
        progress: whether to show a bar.

    Raises:
        SiteError: a site is not of this model, or has no closed form.
        LocalizationError: no site is given.
        FactError: there is no text, or an item is not a text.
        EditError: the ridge is negative, or `max_tokens` or `batch_size` is not positive.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts()
        >>> key_statistics(hm, ["L2.mlp.out", "L3.mlp.out"], facts.text[:20], progress=False)
        KeyStatistics(L2.mlp.out, L3.mlp.out; ... tokens, ridge 0.001, of ...)

    Source: Meng et al. (2022), with 100,000 texts of Wikipedia.
    """
    from tqdm.auto import tqdm

    matrices = memories(hm, sites)
    positive(EditError, max_tokens=max_tokens, batch_size=batch_size)
    if not ridge >= 0:
        raise EditError(f"ridge is {ridge!r}; give 0 or more, such as {RIDGE:g}")
    longest = min(max_tokens, hm.context_length or max_tokens)
    width = hm.arch.shape.d_mlp
    sums = {m.site: torch.zeros(width, width, dtype=torch.float64, device=exact(hm)) for m in matrices}
    work, tokens = working_copy(hm), 0
    with tqdm(disable=not progress, desc="key statistics", unit=" tokens", leave=False) as bar:
        for batch in _batches(texts, batch_size):
            ids, mask = hm.encode(batch, max_tokens=longest)
            _add(work, matrices, ids, mask, sums)
            tokens += (count := int(mask.sum()))
            bar.update(count)
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
    """Raise EditError unless the argument is a KeyStatistics."""
    if not isinstance(statistics, KeyStatistics):
        raise EditError(
            f"the key statistics are {statistics!r}; make them with key_statistics(hm, localization, texts), "
            "or load a file of them with KeyStatistics.load(path)"
        )


def exact(hm: HookedModel) -> torch.device:
    """The device for sums in float64: the model's, or the CPU if that device has no float64 (mps)."""
    return torch.device("cpu") if hm.device.type == "mps" else hm.device


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = stream_of(FactError, texts, name="texts")
    while batch := list(islice(remaining, size)):
        if nonblank := [text for text in batch if text.strip()]:
            yield nonblank


@torch.no_grad()
def _add(
    hm: HookedModel,
    matrices: Sequence[Memory],
    tokens: Int[Tensor, "row pos"],
    mask: Int[Tensor, "row pos"],
    sums: Mapping[Site, Tensor],
) -> None:
    """Run a batch up to the highest site, and add the outer products of its keys to the sums."""

    # A function per memory, since a closure in a loop would see the last one only.
    def adding(memory: Memory) -> Hook:
        def add(keys: Tensor, hook: Any = None) -> None:
            total = sums[memory.site]
            rows = keys[mask.bool().to(keys.device)].to(total)
            total.addmm_(rows.T, rows)

        return Hook(memory.keys, add)

    hooks = [adding(memory) for memory in matrices]
    top = max(memory.layer for memory in matrices) + 1
    hm.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks, return_type=None, stop_at_layer=top)
