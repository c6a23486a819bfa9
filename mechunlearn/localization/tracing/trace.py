"""Causal tracing: break the subject, mend one place, and see how much of the answer comes back.

1. Every prompt is run once as it is, and the states to restore later are kept.
2. Gaussian noise is added to the embeddings of the subject's tokens, `noise` times the standard deviation of
   the subjects' embeddings, in several seeded samples. The probability of the fact's own whole answer falls
   to its corrupted value.
3. For every layer and token group, the corrupted run is repeated *with the same noise*, but with the clean
   state of a window of layers written back at the tokens of that group.
4. The score is the probability that comes back: restored minus corrupted, averaged over the samples.

The noise is drawn per fact in the order of the facts, in float32 on the CPU, so it does not depend on batch
size, device or precision. Tokens of the answer itself (only answers of several tokens have them in the input)
are restored together with the last token of the prompt: these are the positions at which the answer is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.hooks import At, Hook, Store, patch, patch_middle
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, SiteError, one_of, require_positive
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.patches import writes_of
from mechunlearn.localization.patching.activation import settings_of
from mechunlearn.localization.patching.answer_metrics import Metric
from mechunlearn.localization.patching.corruption import pair
from mechunlearn.localization.patching.positions import interventions
from mechunlearn.localization.patching.sweep import sweep
from mechunlearn.localization.tracing.guo2024 import guo2024_trace
from mechunlearn.models.encoding.batch import GROUPS, Batch
from mechunlearn.models.hooked import HookedModel

_METRIC: tuple[Metric, ...] = ("probability",)
Restore = Literal["resid", "mlp", "attn"]
_KIND = {"resid": "resid_post", "mlp": "mlp", "attn": "attn"}


def causal_trace(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    restore: Restore | tuple[Restore, ...] = "mlp",
    noise: float | int = 3.0,
    samples: int = 3,
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
        restore: ``"mlp"`` or ``"attn"`` (what the component writes into the residual stream), ``"resid"``
            (the residual stream after the block; such scores draw but select no weights), or several of them,
            as in ``("attn", "mlp")``, to rank all components together.
        noise: in units of the standard deviation of the subjects' embeddings; 3 is the custom.
        samples: draws of noise per fact.
        window: neighbouring layers restored together, centred on the scored one and cut at the ends.
        seed: of the noise.
        batch_size: prompts per forward pass, samples counted.
        progress: show a progress bar.
        convention: ``"guo2024"`` traces heads and MLPs as Guo et al. 2024 did, for comparison with their
            figures: their noise, their metric, all positions at once; see `guo2024`.

    Returns:
        Scores over ``fact``, ``site`` and ``pos`` (the five token groups), in probability; not-a-number where
        a prompt has no token of a group.

    Raises:
        ScoresError: for an unknown `restore`, or a number out of range.
        FactError: if there are no facts.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> trace = mu.causal_trace(hm, facts[:2], samples=1, progress=False)
        >>> trace.top(1)
        Localization(L0.mlp; ...)

    Source: Meng et al. 2022, Locating and Editing Factual Associations in GPT.
    """
    require_positive(noise=noise, samples=samples, window=window, batch_size=batch_size)
    if convention is not None:
        _require_alone(convention, restore=restore, noise=noise, samples=samples, window=window)
        return guo2024_trace(hm, facts, seed=seed, batch_size=batch_size, progress=progress)
    named = interventions(hm, _sites(hm, restore), window=window)
    pairs = pair(
        hm, facts, _METRIC, corrupt="noise", noise=noise, samples=samples, seed=seed, batch_size=batch_size
    )
    writes = [writes_of(hm, together) for together in named.values()]
    names = tuple(dict.fromkeys(write.name for some in writes for write in some))
    settings = settings_of(hm, pairs, _METRIC, names, direction="denoising", batch_size=batch_size)
    total = len(writes) * len(GROUPS) * len(pairs.asked) * samples
    with tqdm(total=total, desc="causal trace", disable=not progress) as bar:
        found = sweep(Engine.of(hm), settings, writes, asked=pairs.asked, positions="groups", bar=bar)
    kinds = restore if isinstance(restore, str) else " and ".join(restore)
    return Scores.of(
        found.values[..., 0],
        list(named),
        dims=("fact", "site", "pos"),
        params=hm.sites,
        tokens=GROUPS,
        title=f"Causal tracing: {kinds} restored, noise {noise:g}, {samples} samples, window {window}"
        + found.said,
        unit="probability restored",
    )


def noised_embeddings(
    hm: HookedModel, facts: Sequence[Fact], *, noise: float | int = 3.0, samples: int = 1, seed: int = 0
) -> tuple[Batch, Float[Tensor, "row pos d_model"]]:
    """Give the rows that `causal_trace` runs, and the embeddings that it gives them, noise and all.

    Args:
        hm: the model.
        facts: what is traced; the noise of each depends on those before it.
        noise: in units of the standard deviation of the subjects' embeddings.
        samples: draws of noise per fact, which are rows next to each other.
        seed: of the noise.

    Returns:
        The rows, in which answers of several tokens are fed but for the last; and what a corrupted run has
        at ``hook_embed``.

    Raises:
        ScoresError: for a number that is not above zero.
        FactError: if there are no facts.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget[:2]
        >>> batch, noised = noised_embeddings(hm, facts, samples=3)
        >>> len(batch), noised.shape[:2] == batch.tokens.shape
        (6, True)
    """
    require_positive(noise=noise, samples=samples)
    pairs = pair(hm, facts, _METRIC, corrupt="noise", noise=noise, samples=samples, seed=seed)
    both = pairs.runs(hm)
    embedded = both.corrupt.embedded
    assert embedded is not None, "noise is written at the embeddings"
    return both.asked.batch, embedded


def trace_hooks(
    hm: HookedModel,
    site: Site,
    *,
    clean: Store,
    noised: Float[Tensor, "batch pos d_model"],
    at: At,
    window: int = 1,
) -> list[Hook]:
    """One cell of a causal trace as hooks, for `run_with_hooks` and experiments of your own.

    The embeddings are replaced by `noised` ones, and the site's clean activations are written back over a
    window of layers. With what `noised_embeddings` gives, it is the very run that `causal_trace` scores.

    Args:
        hm: the model.
        site: what is restored, such as ``L3.mlp`` or ``L3.resid_post``.
        clean: activations of the clean run, by hook point.
        noised: what is written at ``hook_embed``.
        at: where the clean activations are written; a mask that is all False leaves the corrupted run.
        window: neighbouring layers restored together.

    Raises:
        SiteError: the model does not have the site, or it is not an activation at single tokens.
        ScoresError: for a window that is not above zero.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget[:2]
        >>> batch, noised = noised_embeddings(hm, facts)
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


def _sites(hm: HookedModel, restore: Restore | tuple[Restore, ...]) -> list[Site]:
    kinds = (restore,) if isinstance(restore, str) else restore
    for kind in kinds:
        if kind not in _KIND:
            raise ScoresError(one_of("restore", kind, _KIND) + ", or a tuple of them")
    if not kinds or len(set(kinds)) < len(kinds):
        raise ScoresError(f"restore must name one or more different kinds of {tuple(_KIND)}; not {restore!r}")
    return [Site(_KIND[kind], layer) for layer in range(hm.arch.shape.n_layers) for kind in kinds]


def _require_alone(convention: str, **options: Any) -> None:
    """A convention fixes what it is about; options that say otherwise would be ignored without a word."""
    if convention != "guo2024":
        raise ScoresError(one_of("convention", convention, ["guo2024", None]))
    usual = {"restore": "mlp", "noise": 3.0, "samples": 3, "window": 1}
    if changed := [name for name, value in options.items() if value != usual[name]]:
        raise ScoresError(
            f"convention={convention!r} fixes {', '.join(usual)}; leave out {', '.join(changed)}, or the "
            "convention"
        )
