"""Check on a model, before it is trusted, that blocks can be entered from the middle.

1. A few random tokens are run once, and once with other tokens from the second position on.
2. Some sites are patched from the second run into the first, block by block and with the plain hooked run.
   The final states must agree to rounding.
3. Nothing is patched, but the last blocks run again from the middle of the prompt: the states must be the
   run's. So must be those of every block run part by part.
4. A later token is changed: keys and values of earlier positions must not change. Otherwise what comes
   after a position could not be computed without what comes before it.
5. The final norm and the unembedding must give the model's logits, all of them and by columns.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.blocks import run_block, run_chunk
from mechunlearn.localization.engine.cached_run import CachedRun, cached_run
from mechunlearn.localization.engine.fused_block import run_components
from mechunlearn.localization.engine.patch_hooks import Writer
from mechunlearn.localization.engine.patches import Jobs, writes_of
from mechunlearn.localization.engine.planning import chunks, starts
from mechunlearn.localization.engine.readout import Final
from mechunlearn.localization.engine.reference_run import run_hooked
from mechunlearn.models.activations import activations
from mechunlearn.models.agreement import close
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.hooked import HookedModel

_ROWS, _LENGTH = 2, 6


def problem(hm: HookedModel, *, parts: bool) -> str | None:
    """Say why this model's blocks cannot be entered from the middle, or None if they can.

    Args:
        hm: the model; it is run about six times on a dozen tokens.
        parts: try blocks run part by part; see `components`.
    """
    first, other = prompts(hm)
    jobs = _sites(hm)
    try:
        run = cached_run(hm, first, jobs.names)
        source = activations(hm, other, jobs.names)
        with torch.no_grad():
            apart = _parts(hm, run) if parts else None
            return (
                apart
                or _compare(hm, run, source, jobs, parts)
                or _unchanged(hm, run)
                or _causal(hm, run, other)
                or _logits(hm, run)
            )
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        return f"a block could not be run on its own ({type(error).__name__}: {error})"


def _compare(
    hm: HookedModel, run: CachedRun, source: dict[str, Tensor], jobs: Jobs, parts: bool
) -> str | None:
    read = torch.full((_ROWS, 1), _LENGTH - 1, device=hm.device)
    begin = starts(jobs, run, source, read)
    writer = Writer()
    with hm.bridge.hooks(fwd_hooks=writer.hooks(jobs.interventions)):
        for chunk in chunks(jobs, begin, read, budget=1 << 12):
            found = run_chunk(hm, run, source, jobs, chunk, writer, read, parts=parts)
            some = torch.tensor([step.job for step in chunk.steps], device=hm.device)
            writer.now = {}
            wanted = run_hooked(hm, run, source, jobs.pick(some), read)
            if not close(found, wanted):
                return f"patches from position {chunk.start} on differ from hooked runs"
    return None


def _unchanged(hm: HookedModel, run: CachedRun) -> str | None:
    rows, start = torch.arange(_ROWS, device=hm.device), _LENGTH // 2
    state = run.resid[len(run.calls) // 2][:, start:]
    for layer in range(len(run.calls) // 2, len(run.calls)):
        state = run_block(hm, run, layer, state, rows, start)
    same = close(state, run.resid[-1][:, start:])
    return None if same else "an unchanged state does not lead to the same final state"


def _parts(hm: HookedModel, run: CachedRun) -> str | None:
    rows, start = torch.arange(_ROWS, device=hm.device), _LENGTH // 2
    wanted = torch.tensor([[0, _LENGTH - start - 1]] * _ROWS, device=hm.device)
    for layer in range(len(run.calls)):
        before, after = run.resid[layer][:, start:], run.resid[layer + 1][:, start:]
        found = run_components(hm, run, layer, before, rows, start)
        picked = run_components(hm, run, layer, before, rows, start, wanted=wanted)
        if not (close(found, after) and close(picked, after[rows[:, None], wanted])):
            return f"block {layer} part by part differs from the block"
    return None


def _causal(hm: HookedModel, run: CachedRun, other: Batch) -> str | None:
    tokens = run.batch.tokens.clone()
    tokens[:, -1] = other.tokens[:, -1]
    changed = cached_run(hm, replace(run.batch, tokens=tokens))
    pairs = zip((*run.keys, *run.values), (*changed.keys, *changed.values), strict=True)
    early = all(close(one[:, :, :-1], two[:, :, :-1]) for one, two in pairs)
    return None if early else "earlier positions depend on later ones"


def _logits(hm: HookedModel, run: CachedRun) -> str | None:
    final, wanted = Final(hm, run.resid[-1]), hm(run.batch.tokens, attention_mask=run.batch.mask)
    ids = run.batch.tokens[:, None, :]
    picked = wanted.gather(2, run.batch.tokens[..., None])[..., 0]
    same = close(final.logits, wanted) and close(final.columns(ids)[:, 0], picked)
    return None if same else "the final norm and the unembedding do not give the model's logits"


def _sites(hm: HookedModel) -> Jobs:
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
    return Jobs.grid([writes_of(hm, sites) for sites in chosen], where)


def hooked(hm: HookedModel, under: str = "") -> bool:
    """Whether somebody's hooks are at the model's hook points, or at those whose names begin so."""
    points = (point for name, point in hm.bridge.hook_dict.items() if name.startswith(under))
    return any(point.fwd_hooks for point in points)


def prompts(hm: HookedModel) -> tuple[Batch, Batch]:
    """Two small batches of random tokens that agree in their first."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = hm.hf.get_input_embeddings().weight.shape[0]
    first = torch.randint(vocabulary, (_ROWS, _LENGTH), generator=generator)
    other = torch.randint(vocabulary, (_ROWS, _LENGTH), generator=generator)
    other[:, 0] = first[:, 0]
    one, two = Batch.of_tokens(first.to(hm.device)), Batch.of_tokens(other.to(hm.device))
    # One row is padded, as the rows of a sweep are.
    mask = one.mask.clone()
    mask[-1, -1] = 0
    return replace(one, mask=mask), replace(two, mask=mask)
