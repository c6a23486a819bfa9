"""The reference: every patch is a row of a complete, hooked run of the model.

It assumes nothing about the model; patches share batches, and no other work is saved. The faster way is
checked against it, and it runs where a check fails.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.localization.engine.cached_run import CachedRun, embedding_hooks, final_hook
from mechunlearn.localization.engine.patch_hooks import PatchHooks
from mechunlearn.localization.engine.patches import Patches
from mechunlearn.models.activations import activations
from mechunlearn.models.hooked import HookedModel


def run_hooked(
    hm: HookedModel,
    run: CachedRun,
    source: Mapping[str, Tensor],
    patches: Patches,
    read: Int[Tensor, "row answer"],
) -> Float[Tensor, "patch answer d_model"]:
    """Run patches as rows of one complete forward pass, and give their final states where they are read."""
    writer = PatchHooks()
    interventions = enumerate(patches.intervention.tolist())
    writes = [(row, row, write) for row, i in interventions for write in patches.interventions[i]]
    writer.lay_out(writes, patches, source, start=0, stop=run.batch.tokens.shape[1])
    embedded = None if run.embedded is None else run.embedded[patches.row]
    hooks = embedding_hooks(embedded) + writer.hooks(patches.interventions)
    name = final_hook(hm)
    resid = activations(hm, run.batch.rows(patches.row), [name], hooks=hooks)[name]
    return resid.gather(1, read[patches.row][..., None].expand(-1, -1, resid.shape[-1]))
