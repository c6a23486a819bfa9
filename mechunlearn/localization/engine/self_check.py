"""Check on a model, before it is trusted, that its blocks can be entered from the middle.

1. A few random tokens are run once, and once with other tokens from the second position on.
2. Some sites are patched from the second run into the first, block by block and in complete hooked runs. The
   final states must agree to rounding.
3. Nothing is patched, but the last blocks run again from the middle of the prompt: the states must be those
   of the run. Every block in its fused form must give the states of the run, too.
4. A later token is changed: keys and values of earlier positions must not change. Otherwise positions could
   not be computed without those after them.
5. The final norm and the unembedding must give the model's logits, all of them and by columns.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.blocks import run_batch, run_block
from mechunlearn.localization.engine.cached_run import CachedRun, cached_run
from mechunlearn.localization.engine.fused_block import run_fused_block
from mechunlearn.localization.engine.patch_hooks import PatchHooks
from mechunlearn.localization.engine.patches import Patches, writes_of
from mechunlearn.localization.engine.planning import batches, entries_of
from mechunlearn.localization.engine.readout import FinalStates
from mechunlearn.localization.engine.reference_run import run_hooked
from mechunlearn.models.activations import activations
from mechunlearn.models.agreement import close
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.hooked import HookedModel

_ROWS, _LENGTH = 2, 6


def reason_against(hm: HookedModel, *, fused: bool) -> str:
    """Say why this model's blocks cannot be entered from the middle; empty if they can.

    The model is run about six times on a dozen tokens. ``fused`` checks blocks in their fused form, too.
    """
    first, second = random_batches(hm)
    patches = _patches(hm)
    try:
        run = cached_run(hm, first, patches.names)
        source = activations(hm, second, patches.names)
        with torch.no_grad():
            reason = (
                (_check_fused_blocks(hm, run) if fused else None)
                or _check_patches(hm, run, source, patches, fused)
                or _check_unpatched_blocks(hm, run)
                or _check_causality(hm, run, second)
                or _check_logits(hm, run)
            )
            return reason or ""
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        return f"a block could not be run on its own ({type(error).__name__}: {error})"


def _check_patches(
    hm: HookedModel, run: CachedRun, source: dict[str, Tensor], patches: Patches, fused: bool
) -> str | None:
    read = torch.full((_ROWS, 1), _LENGTH - 1, device=hm.device)
    entries = entries_of(patches, run, source, read)
    hooks = PatchHooks()
    with hm.bridge.hooks(fwd_hooks=hooks.hooks(patches.interventions)):
        for batch in batches(patches, entries, read, budget=1 << 12):
            actual = run_batch(hm, run, source, patches, batch, hooks, read, fused=fused)
            some = torch.tensor([patch.number for patch in batch.patches], device=hm.device)
            hooks.current = {}
            expected = run_hooked(hm, run, source, patches.pick(some), read)
            if not close(actual, expected):
                return f"patches from position {batch.start} on differ from hooked runs"
    return None


def _check_unpatched_blocks(hm: HookedModel, run: CachedRun) -> str | None:
    rows, start = torch.arange(_ROWS, device=hm.device), _LENGTH // 2
    state = run.resid[len(run.calls) // 2][:, start:]
    for layer in range(len(run.calls) // 2, len(run.calls)):
        state = run_block(hm, run, layer, state, rows, start)
    same = close(state, run.resid[-1][:, start:])
    return None if same else "an unchanged state does not lead to the same final state"


def _check_fused_blocks(hm: HookedModel, run: CachedRun) -> str | None:
    rows, start = torch.arange(_ROWS, device=hm.device), _LENGTH // 2
    positions = torch.tensor([[0, _LENGTH - start - 1]] * _ROWS, device=hm.device)
    for layer in range(len(run.calls)):
        before, after = run.resid[layer][:, start:], run.resid[layer + 1][:, start:]
        states = run_fused_block(hm, run, layer, before, rows, start)
        chosen = run_fused_block(hm, run, layer, before, rows, start, positions=positions)
        if not (close(states, after) and close(chosen, after[rows[:, None], positions])):
            return f"block {layer} in its fused form differs from the block"
    return None


def _check_causality(hm: HookedModel, run: CachedRun, second: Batch) -> str | None:
    tokens = run.batch.tokens.clone()
    tokens[:, -1] = second.tokens[:, -1]
    changed = cached_run(hm, replace(run.batch, tokens=tokens))
    pairs = zip((*run.keys, *run.values), (*changed.keys, *changed.values), strict=True)
    same = all(close(one[:, :, :-1], two[:, :, :-1]) for one, two in pairs)
    return None if same else "earlier positions depend on later ones"


def _check_logits(hm: HookedModel, run: CachedRun) -> str | None:
    final, expected = FinalStates(hm, run.resid[-1]), hm(run.batch.tokens, attention_mask=run.batch.mask)
    ids = run.batch.tokens[:, None, :]
    columns = expected.gather(2, run.batch.tokens[..., None])[..., 0]
    same = close(final.logits, expected) and close(final.columns(ids)[:, 0], columns)
    return None if same else "the final norm and the unembedding do not give the model's logits"


def _patches(hm: HookedModel) -> Patches:
    """Patches of several kinds of sites, at one position and at several."""
    last = hm.arch.shape.n_layers - 1
    heads = "head" if not hm.arch.shape.grouped else "kv"
    chosen = [
        (Site("resid_pre", 0),),
        (Site("mlp", last // 2), Site("mlp", last)),
        (Site("mlp", last),),
        (Site("attn", last),),
        (Site(heads, last // 2, 0, "k"),),
        (Site("head", last, hm.arch.shape.n_heads - 1),),
    ]
    where = torch.zeros(2, _ROWS, _LENGTH, dtype=torch.bool, device=hm.device)
    where[0, :, 2], where[1, :, 1:] = True, True
    return Patches.grid([writes_of(hm, sites) for sites in chosen], where)


def has_hooks(hm: HookedModel, prefix: str = "") -> bool:
    """Whether the user has set hooks, at any hook point or at those whose names begin with a prefix."""
    points = (point for name, point in hm.bridge.hook_dict.items() if name.startswith(prefix))
    return any(point.fwd_hooks for point in points)


def random_batches(hm: HookedModel) -> tuple[Batch, Batch]:
    """Two small batches of random tokens that agree in their first token."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = hm.hf.get_input_embeddings().weight.shape[0]
    first = torch.randint(vocabulary, (_ROWS, _LENGTH), generator=generator)
    second = torch.randint(vocabulary, (_ROWS, _LENGTH), generator=generator)
    second[:, 0] = first[:, 0]
    one, two = Batch.of_tokens(first.to(hm.device)), Batch.of_tokens(second.to(hm.device))
    # One row is padded, as rows of a sweep are.
    mask = one.mask.clone()
    mask[-1, -1] = 0
    return replace(one, mask=mask), replace(two, mask=mask)
