"""Edge attribution: a first-order estimate of what corrupting one connection of two components would do.

1. The prompts, the metric and the sign are those of `attribution`.
2. An edge runs from a component that writes into the residual stream to one that reads it. It is corrupted
   when that reader alone reads, from that writer, what it would have written in the other prompt.
3. The score of an edge is the difference of the writes, corrupt minus clean, times the metric's gradient at
   the stream as that reader reads it, summed over positions. A layer's edges are one matrix product.
4. ``"eap"`` takes the gradient at the clean run. ``"eap-ig-inputs"`` averages it over runs whose embeddings
   lie between the corrupt and the clean ones. ``"eap-ig-activations"`` takes it, for the edges *of one
   sender*, from runs in which what this sender writes lies between the two and the rest follows: embeddings,
   then layer by layer all heads together, and the MLP. Step ``k`` of ``m`` is ``k/m`` of the way to clean.

Summed over the receivers of a sender, edges give back the attribution of the sender itself (with
``"eap-ig-activations"`` and many steps: the exact change that patching it makes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.scores.edges import EdgeScores
from mechunlearn.core.scores.labels import SUPPORT
from mechunlearn.errors import ScoresError, one_of
from mechunlearn.localization.attribution.edge_sums import (
    EdgeSums,
    Steps,
    at_clean,
    between_activations,
    between_inputs,
)
from mechunlearn.localization.attribution.gradients import differentiable
from mechunlearn.localization.attribution.graph import Graph
from mechunlearn.localization.patching.corruption import OtherSubject, corruption_of
from mechunlearn.localization.patching.pairs import Pairs, pair
from mechunlearn.localization.patching.positions import Positions, Totals, labels_of, shares_of
from mechunlearn.models.hooked import HookedModel

Method = Literal["eap", "eap-ig-inputs", "eap-ig-activations"]


@torch.inference_mode(False)  # a caller may have switched gradients off
def edge_attribution(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    method: Method = "eap",
    steps: int = 5,
    positions: Positions = "all",
    corrupt: Literal["subject"] | OtherSubject = "subject",
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> EdgeScores:
    """Estimate for every connection between components what corrupting it alone would do to the answer.

    Senders are the embeddings, heads and MLPs; receivers are the queries, keys and values of heads (under
    grouped queries: keys and values of groups), MLPs, and the end of the residual stream. ``"eap"`` costs two
    forward passes and one backward pass; ``"eap-ig-inputs"`` costs `steps` times that, and
    ``"eap-ig-activations"`` that again times twice the number of layers.

    Args:
        hm: the model; its weights and their gradients are left as they were.
        facts: each needs a `foil`, a `new` answer or `options`.
        method: where the gradient is taken: ``"eap"`` in the clean run, ``"eap-ig-inputs"`` between the
            embeddings, ``"eap-ig-activations"`` between the activations of each sender.
        steps: runs on the way from corrupt to clean; ``"eap"`` has none.
        positions: ``"all"`` tokens together, token ``"groups"``, or ``"each"`` token.
        corrupt: another ``"subject"`` of equally many tokens; `OtherSubject` names a pool of facts.
        seed: seed of the random choice of subjects, unless `corrupt` has one.
        batch_size: runs per pass. What every sender writes is held at once: for GPT-2 small half a megabyte
            per run and token.
        progress: show a progress bar.

    Returns:
        Scores over ``fact``, ``sender`` and ``receiver``, and ``pos`` (not for ``"all"``): the estimated
        support of the logit difference; above 0, the edge supports the answer. Not-a-number where no edge
        can be. Facts for which no other subject has equally many tokens are left out, which the title says.

    Raises:
        FactError: a fact has nothing to compare its answer with, or none finds another subject.
        ScoresError: for an unknown `method` or `positions`, or a number that is not above zero.
        ModelError: the model was loaded inside ``torch.inference_mode()``.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> edges = mu.edge_attribution(hm, facts[:4], progress=False)
        >>> len(edges.top(3)), edges.nodes().sites[0]
        (3, Site.parse('embed'))

    Source: Syed et al. 2023, Attribution Patching Outperforms Automated Circuit Discovery; Hanna et al. 2024,
    Have Faith in Faithfulness; Marks et al. 2024 for the integral over a sender's own activations.
    """
    _check(method, steps=steps, batch_size=batch_size)
    subject = corruption_of(corrupt, (OtherSubject,), seed=seed)
    graph = Graph(hm)
    pairs = pair(hm, facts, ("logit_diff",), corrupt=subject)
    totals = Totals.of(pairs.answers, positions, len(graph.senders), len(graph.receivers))
    size = batch_size if method == "eap" else max(1, batch_size // steps)
    with tqdm(total=len(pairs.answers), desc="edge attribution", disable=not progress) as bar:
        for _, part in pairs.parts(size):
            shares = shares_of(part, positions, places=totals.places)
            effects = edge_estimates(
                hm, part, method=method, steps=steps, shares=shares, batch_size=batch_size
            )
            totals.add(part.answers, effects)
            bar.update(len(part.answers))
    form = "" if method == "eap" else f", {method.removeprefix('eap-ig-')} in {steps} steps"
    note = f", {pairs.note}" if pairs.note else ""
    return EdgeScores.of(
        -totals.values if positions != "all" else -totals.values[..., 0],
        graph.senders,
        graph.receivers,
        dims=("fact", "sender", "receiver", "pos")[: 3 + (positions != "all")],
        tokens=labels_of(pairs.answers, positions),
        facts=pairs.index,
        params=hm.sites,
        change_sign=-1,
        title=f"Edge attribution{form}{note}",
        unit=f"{SUPPORT}logit difference",
        recipe={"facts": list(facts), "corrupt": subject, "positions": positions},
    )


def edge_estimates(
    hm: HookedModel,
    pairs: Pairs,
    *,
    method: Method = "eap",
    steps: int = 5,
    shares: Float[Tensor, "row pos place"] | None = None,
    batch_size: int = 16,
) -> Float[Tensor, "row sender receiver place"]:
    """Give the first-order effect of every edge on every row's metric.

    Options are those of `edge_attribution`. `Pairs.at_end` makes the rows from token ids. ``shares`` is the
    weight of each token in each place, from `shares_of`; None for one place with all tokens.
    """
    graph = Graph(hm)
    sums = EdgeSums(graph, pairs, shares_of(pairs, "all", places=1) if shares is None else shares)
    with differentiable(hm):
        if method == "eap":
            at_clean(sums)
        elif method == "eap-ig-inputs":
            between_inputs(sums, Steps(steps, batch_size))
        else:
            between_activations(sums, Steps(steps, batch_size))
    absent = torch.where(graph.edges(), 0.0, torch.nan).to(sums.values)
    return sums.values + absent[..., None]


def _check(method: str, **counts: int) -> None:
    if method not in get_args(Method):
        raise ScoresError(one_of("method", method, get_args(Method)))
    positive(ScoresError, **counts)
