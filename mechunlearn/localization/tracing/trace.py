"""Causal tracing: break the subject, restore one site, and see how much of the answer comes back.

1. Every prompt is run once as it is, and the states to restore later are kept.
2. Gaussian noise is added to the embeddings of the subject's tokens, in several seeded samples (`Noise`). The
   probability of the fact's own whole answer falls to its corrupted value.
3. For every layer and token group, the corrupted run is repeated *with the same noise*, but with the clean
   state of a window of layers written back at the tokens of that group.
4. The score is the probability that comes back: restored minus corrupted, averaged over the samples.

It is activation patching with noise, denoising, by the probability of the answer. Tokens of the answer itself
(only answers of several tokens have them in the input) are restored together with the last token of the
prompt: these are the positions at which the answer is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.hooks import At, Hook, Store, patch, patch_middle
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, SiteError, one_of
from mechunlearn.localization.patching.activation import patch_scores
from mechunlearn.localization.patching.corruption import Noise, corruption_of
from mechunlearn.localization.patching.pairs import pair
from mechunlearn.localization.patching.positions import interventions, layer_sites
from mechunlearn.localization.tracing.guo2024 import guo2024_trace
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.hooked import HookedModel

Restored = Literal["resid_post", "mlp", "attn"]


def causal_trace(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    sites: Restored | Sequence[Restored] = "mlp",
    corrupt: Literal["noise"] | Noise = "noise",
    window: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
    convention: Literal["guo2024"] | None = None,
) -> Scores:
    """Trace where restoring a clean state brings the answer back although the subject is noise.

    A component with a high score at the subject's tokens helps to look the fact up; one with a high score at
    the last token carries the answer out.

    Args:
        hm: the model; it is left as it was.
        facts: each is scored on the probability of its own whole answer.
        sites: what is restored: ``"mlp"`` or ``"attn"`` (what the component writes into the residual stream),
            ``"resid_post"`` (the residual stream after the block; these scores can be plotted, but select no
            weights), or several of them, as in ``("attn", "mlp")``, to rank all components together.
        corrupt: ``"noise"`` on the subject's embeddings, or a `Noise` of another scale or number of samples.
        window: neighbouring layers restored together, centred on the scored one and cut at the ends.
        seed: seed of the noise, unless `corrupt` has one.
        batch_size: prompts per forward pass, samples counted.
        progress: show a progress bar.
        convention: ``"guo2024"`` traces heads and MLPs as Guo et al. 2024 did, for comparison with their
            figures: their noise, their metric, all positions at once; see `guo2024`.

    Returns:
        Scores over ``fact``, ``site`` and ``pos`` (the five token groups), in probability; not-a-number where
        a prompt has no token of a group.

    Raises:
        ScoresError: for unknown `sites`, another corruption, or a number out of range.
        FactError: if there are no facts.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> trace = mu.causal_trace(hm, facts[:2], sites="mlp", corrupt=mu.Noise(samples=1), progress=False)
        >>> trace.top(1)
        Localization(L0.mlp; ...)

    Source: Meng et al. 2022, Locating and Editing Factual Associations in GPT.
    """
    noise = corruption_of(corrupt, (Noise,), seed=seed)
    positive(ScoresError, window=window, batch_size=batch_size)
    if convention is not None:
        _require_alone(convention, sites=sites, corrupt=replace(noise, seed=None), window=window)
        return guo2024_trace(hm, facts, seed=noise.seed or 0, batch_size=batch_size, progress=progress)
    named = interventions(hm, layer_sites(hm, sites, get_args(Restored)), window=window)
    kinds = sites if isinstance(sites, str) else " and ".join(sites)
    return patch_scores(
        hm, facts, named, noise, direction="denoising", positions="groups", metric="probability",
        batch_size=batch_size, progress="causal trace" if progress else None,
        title=f"Causal tracing: {kinds} restored, noise {noise.scale:g}, {noise.samples} samples, "
        f"window {window}",
        unit="probability restored",
    )  # fmt: skip


def noised_embeddings(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    corrupt: Literal["noise"] | Noise = "noise",
    seed: int = 0,
) -> tuple[Batch, Float[Tensor, "row pos d_model"]]:
    """Make the rows that `causal_trace` runs, and their noised embeddings.

    Args:
        hm: the model.
        facts: the facts to trace; the noise of each depends on those before it.
        corrupt: the noise, as for `causal_trace`; the samples of a fact are rows next to each other.
        seed: seed of the noise, unless `corrupt` has one.

    Returns:
        The rows, in which answers of several tokens are fed but for the last; and the embeddings of a
        corrupted run, at ``hook_embed``.

    Raises:
        ScoresError: for another corruption.
        FactError: if there are no facts.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget[:2]
        >>> batch, noised = mu.noised_embeddings(hm, facts, corrupt=mu.Noise(samples=3))
        >>> len(batch), noised.shape[:2] == batch.tokens.shape
        (6, True)
    """
    both = pair(hm, facts, ("probability",), corrupt=corruption_of(corrupt, (Noise,), seed=seed)).runs(hm)
    embedded = both.corrupt.embedded
    assert embedded is not None, "noise is written at the embeddings"
    return both.answers.batch, embedded


def trace_hooks(
    hm: HookedModel,
    site: Site,
    *,
    clean: Store,
    noised: Float[Tensor, "batch pos d_model"],
    at: At,
    window: int = 1,
) -> list[Hook]:
    """Make one patch of a causal trace as hooks, for `run_with_hooks` and experiments of your own.

    The embeddings are replaced by `noised` ones, and the site's clean activations are written back over a
    window of layers. With the rows of `noised_embeddings`, it is the run that `causal_trace` scores.

    Args:
        hm: the model.
        site: the restored site, such as ``L3.mlp`` or ``L3.resid_post``.
        clean: activations of the clean run, by hook point.
        noised: the embeddings that are written at ``hook_embed``.
        at: the positions to restore; a mask that is all False leaves the corrupted run.
        window: neighbouring layers restored together.

    Raises:
        SiteError: the model does not have the site, or it is not an activation at single tokens.
        ScoresError: for a window that is not above zero.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget[:2]
        >>> batch, noised = mu.noised_embeddings(hm, facts)
        >>> _, clean = hm.run_with_cache(batch.tokens, attention_mask=batch.mask)
        >>> hooks = mu.trace_hooks(hm, mu.Site("mlp", 0), clean=clean, noised=noised, at=batch.subject_last)
        >>> logits = hm.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=hooks)
    """
    together = interventions(hm, [site], window=window)[site]
    restored = [hook for each in together for hook in _restore(hm, each, clean, at)]
    return [patch("hook_embed", noised), *restored]


def _restore(hm: HookedModel, site: Site, clean: Store, at: At) -> list[Hook]:
    points = hm.hook_points(site)
    if site.kind == "pattern":
        raise SiteError(
            f"{site} mixes tokens and does not lie at single ones; restore what its head writes, "
            f"L{site.layer}.head[{site.index}], or patch patterns with mu.activation_patch"
        )
    if site.kind == "resid_mid":
        return patch_middle(site.layer or 0, clean, at=at)
    return [patch(point.name, clean, at=at, index=point.index) for point in points]


def _require_alone(convention: str, **options: Any) -> None:
    """Refuse options beside a convention, which fixes them and would ignore them without a word."""
    if convention != "guo2024":
        raise ScoresError(one_of("convention", convention, ["guo2024", None]))
    usual = {"sites": "mlp", "corrupt": Noise(), "window": 1}
    if changed := [name for name, value in options.items() if value != usual[name]]:
        raise ScoresError(
            f"convention={convention!r} fixes {', '.join(usual)}; leave out {', '.join(changed)}, or the "
            "convention"
        )
