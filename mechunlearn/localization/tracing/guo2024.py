"""Causal tracing as the authors of "Mechanistic Unlearning" ran it, for comparison with their figures.

1. Each prompt's subject embeddings get Gaussian noise whose standard deviation is the *root* of three times
   that of their own entries, drawn anew in every forward pass.
2. One component at a time (every head's output, every MLP's) gets its clean value back at all positions.
3. The metric is the probability of the first answer tokens of *all* the facts together, not of each fact's
   own.
4. The score is (patched - corrupted) / (clean - corrupted), per fact.

Because noise is drawn anew, the difference of two runs holds the difference of their draws, and a sum over
the heads of a layer adds that up. `causal_trace` without a convention shares its noise between baseline and
patch and scores each fact's own answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.hooks import Hook, patch
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.models.activations import activations
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel


def guo2024_trace(
    hm: HookedModel, facts: Sequence[Fact], *, seed: int = 0, batch_size: int = 64, progress: bool = True
) -> Scores:
    """Trace every head and MLP as Guo et al. 2024 did in the second version of Mechanistic Unlearning.

    All facts are traced together, since the answers of all are in each one's metric. The noise does not
    depend on the batch size. Select from the scores, over ``fact`` and ``site``, with ``.top(params=...,
    convention="guo2024")``.
    """
    shape = hm.arch.shape
    sites = [
        site
        for layer in range(shape.n_layers)
        for site in (*(Site("head", layer, head) for head in range(shape.n_heads)), Site("mlp", layer))
    ]
    prompts = encode(hm, facts, answer=None)
    answers = encode(hm, facts).answer_ids[:, 0]
    # One generator per fact, so that its noise does not depend on the batch it is in.
    generators = [torch.Generator().manual_seed(seed * len(facts) + i) for i in range(len(facts))]
    starts = range(0, len(facts), batch_size)
    columns: list[Tensor] = []
    with (
        torch.no_grad(),
        tqdm(total=len(starts) * len(sites), desc="causal trace", disable=not progress) as bar,
    ):
        for start in starts:
            rows = slice(start, start + batch_size)
            run = _Noised(hm, prompts.rows(rows).trimmed(), answers, generators[rows], sites)
            columns.append(run.scores(bar))
    return Scores.of(
        torch.cat(columns),
        sites,
        dims=("fact", "site"),
        params=hm.sites,
        title="Causal tracing as in Guo et al. 2024",
        unit="share of the batch's answer probability",
    )


class _Noised:
    """Some prompts, their clean activations, and runs of them under noise drawn anew each time."""

    def __init__(
        self,
        hm: HookedModel,
        batch: Batch,
        answers: Int[Tensor, "fact"],
        generators: Sequence[torch.Generator],
        sites: Sequence[Site],
    ) -> None:
        self.hm, self.batch, self.answers, self.generators = hm, batch, answers, generators
        self.points = [hm.arch.hooks(site)[0] for site in sites]
        self.clean = activations(hm, batch, ["hook_embed", *(point.name for point in self.points)])
        self.std = [
            (3 * self.clean["hook_embed"][row, batch.subject[row]].double().std()).sqrt()
            for row in range(len(batch))
        ]

    def scores(self, bar: tqdm[None]) -> Float[Tensor, "row site"]:
        """The share of the lost probability that each site brings back."""
        clean, corrupt = self._mass([]), self._mass([self._noise()])
        columns = []
        for point in self.points:
            restored = patch(point.name, self.clean, index=point.index)
            columns.append((self._mass([self._noise(), restored]) - corrupt) / (clean - corrupt))
            bar.update()
        return torch.stack(columns, dim=1)

    def _mass(self, hooks: list[Hook]) -> Float[Tensor, "row"]:
        batch = self.batch
        logits = self.hm.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=hooks)
        last = logits[torch.arange(len(batch), device=logits.device), batch.end].double().softmax(-1)
        mass: Tensor = last[:, self.answers].sum(1).cpu()
        return mass

    def _noise(self) -> Hook:
        embedded = self.clean["hook_embed"].clone()
        for row, generator in enumerate(self.generators):
            subject = self.batch.subject[row]
            noise = torch.randn(int(subject.sum()), embedded.shape[-1], generator=generator)
            embedded[row, subject] += (self.std[row].cpu() * noise.double()).to(embedded)
        return patch("hook_embed", embedded)
