"""Path patching as two lists of hooks, for experiments of the user.

1. In the first run the sender's output is another run's, at some positions; heads between sender and
   receivers keep this run's ``z``, and MLPs keep their output or are left to follow the changed stream. What
   the receivers read is recorded.
2. In the second run the receivers read what was recorded, and nothing else is held.

Of an MLP that receives, the output is recorded, which its input alone decides. It is recorded before the MLP
is held for the sake of later receivers.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import replace

from jaxtyping import Bool, Float
from torch import Tensor

from mechunlearn.core.hooks import At, Hook, Store, cache, patch, patch_middle
from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.cached_run import CachedRun, embedding_hooks, final_hook
from mechunlearn.localization.engine.patches import Write
from mechunlearn.localization.path_patching.paths import Mlps, Paths, Receivers, sender_point
from mechunlearn.models.activations import activations
from mechunlearn.models.hooked import HookedModel


def path_hooks(
    hm: HookedModel,
    sender: Site | str,
    receivers: Receivers = None,
    *,
    reference: Store,
    source: Store,
    store: MutableMapping[str, Tensor],
    mlps: Mlps = "freeze",
    at: At = None,
) -> tuple[list[Hook], list[Hook]]:
    """Make the hooks of the two runs that patch the path from a sender to its receivers.

    Both runs are of the prompts of `reference`.

    Args:
        hm: the model.
        sender: a head, a whole attention or MLP, or ``embed``.
        receivers: sites that read the stream; None for the logits, which the first run gives by itself.
        reference: activations of the run that is patched, such as the cache of ``hm.run_with_cache``.
        source: activations of the run that the sender's output comes from.
        store: holds what the receivers read: the first run writes it, the second run uses it.
        mlps: ``"freeze"`` the MLPs between sender and receivers, or ``"recompute"`` them.
        at: the positions at which the sender's output is replaced; None for all.

    Raises:
        ScoresError: for an unknown `mlps`, or no receivers.
        SiteError: for a site that the model lacks, or that cannot send or receive.

    Example:
        >>> hm, store = mu.world.model(), {}
        >>> _, clean = hm.run_with_cache("Mary Lee plays")
        >>> _, other = hm.run_with_cache("Mary Roe plays")
        >>> first, second = mu.path_hooks(
        ...     hm, "L0.mlp", ["L2.head[0].v"], reference=clean, source=other, store=store
        ... )
        >>> _ = hm.run_with_hooks("Mary Lee plays", fwd_hooks=first)
        >>> hm.run_with_hooks("Mary Lee plays", fwd_hooks=second).ndim
        3

    Source: Wang et al. 2022, Interpretability in the Wild, appendix B.
    """
    paths = Paths.of(hm, [sender], receivers, mlps=mlps)
    first = _first(paths, 0, reference, source, store, at)
    return first, [hook for write in _writes(paths) for hook in _receive(write, store)]


def forwarded(
    hm: HookedModel,
    run: CachedRun,
    paths: Paths,
    sender: int,
    source: Mapping[str, Float[Tensor, "row ..."]],
    *,
    at: Bool[Tensor, "row pos"],
) -> dict[str, Float[Tensor, "row pos ..."]]:
    """Record in one hooked run what the receivers read, by hook point; the final stream as ``"logits"``.

    ``run`` must have kept the activations that are held. ``sender`` is the index of the sender that is
    replaced at the positions ``at``. ``source`` has a row for each row of the run.
    """
    store: dict[str, Tensor] = {}
    hooks = _first(paths, sender, run.activations, source, store, at)
    activations(hm, run.batch, [final_hook(hm)], hooks=[*embedding_hooks(run.embedded), *hooks])
    return store if paths.writes else {"logits": store.popitem()[1]}


def _first(
    paths: Paths,
    sender: int,
    reference: Store,
    source: Store,
    store: MutableMapping[str, Tensor],
    at: At,
) -> list[Hook]:
    alone = replace(paths, senders=(paths.senders[sender],))
    (site,) = alone.senders
    recorded = [cache(name, store) for name in dict.fromkeys(write.name for write in _writes(paths))]
    held = [patch(name, reference) for name in alone.held_names()]
    # What a receiver wrote itself is not what it reads: record before anything is changed at the same point.
    return [*recorded, patch(sender_point(site), source, at=at, index=site.index), *held]


def _writes(paths: Paths) -> tuple[Write, ...]:
    """What the second run writes; the logits are as good as the stream after the last block."""
    last = paths.layers - 1
    return paths.writes or (Write(last, "resid_post", f"blocks.{last}.hook_resid_post"),)


def _receive(write: Write, store: Store) -> list[Hook]:
    if write.kind == "resid_mid":
        return patch_middle(write.layer, store)
    units = write.units or (None,)
    return [patch(write.name, store, index=unit) for unit in units]
