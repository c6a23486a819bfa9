"""The plain way: every job is a row of a complete, hooked run of the model.

It makes no assumption about the model and saves nothing but the batching. It is what the faster way is
checked against, and what runs where a check fails.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.localization.engine.cached_run import CachedRun, embedding_hooks, final_hook
from mechunlearn.localization.engine.patch_hooks import Writer
from mechunlearn.localization.engine.patches import Jobs
from mechunlearn.models.activations import activations
from mechunlearn.models.hooked import HookedModel


def run_hooked(
    hm: HookedModel,
    run: CachedRun,
    source: Mapping[str, Tensor],
    jobs: Jobs,
    read: Int[Tensor, "row answer"],
) -> Float[Tensor, "job answer d_model"]:
    """Run jobs as rows of one complete forward pass; gives their final states where they are read."""
    writer = Writer()
    writes = [
        (job, job, w) for job, i in enumerate(jobs.intervention.tolist()) for w in jobs.interventions[i]
    ]
    writer.set(writes, jobs, source, start=0, stop=run.batch.tokens.shape[1])
    embedded = None if run.embedded is None else run.embedded[jobs.row]
    hooks = embedding_hooks(embedded) + writer.hooks(jobs.interventions)
    name = final_hook(hm)
    resid = activations(hm, run.batch.rows(jobs.row), [name], hooks=hooks)[name]
    return resid.gather(1, read[jobs.row][..., None].expand(-1, -1, resid.shape[-1]))
