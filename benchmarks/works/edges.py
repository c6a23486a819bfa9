"""Edge attribution of all edges, beside TransformerLens's, which takes one prompt at a time.

Both take the gradient in the clean run. TransformerLens calls that run the corrupt one; its scores are
averages over the prompts that it is given, so it is given one at a time and compared prompt by prompt, edge
by edge, positions summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import PatchTask, Prompts
from benchmarks.work import Missing, Peer, Work
from mechunlearn.core.sites.site import Site
from mechunlearn.localization.attribution.edges import edge_estimates
from mechunlearn.localization.attribution.graph import Graph
from mechunlearn.localization.patching.pairs import Pairs


def eap_edges(setting: PatchTask) -> Work:
    """All edges between embeddings, heads, MLPs and the end of the residual stream."""
    shape = setting.hm.arch.shape
    if shape.grouped:
        raise Missing("TransformerLens scores no edges under grouped queries; this library does")
    prompts = setting.prompts()
    graph = Graph(setting.hm)
    pairs = Pairs.at_end(prompts.clean, prompts.corrupt, prompts.answers[:, 0], prompts.answers[:, 1])
    count = int(graph.edges().sum())
    return Work(
        "eap_edges",
        len(prompts.clean),
        lambda state: edge_estimates(setting.hm, pairs)[..., 0].nan_to_num(),
        (_transformer_lens(setting, prompts, graph),),
        target=15.0,
        note=f"{count:,} edges for each of {len(prompts.clean)} prompts; the prompts are the sites here",
    )


def _transformer_lens(setting: PatchTask, prompts: Prompts, graph: Graph) -> Peer:
    from transformer_lens.tools.analysis import attribution_patching as tl

    def run(state: None, sites: Sequence[int]) -> list[dict[Any, float]]:
        config, found = tl.EdgeAttributionConfig(granularity="edge"), []
        for site in sites:
            row = slice(site, site + 1)
            answers = Prompts(prompts.clean[row], prompts.corrupt[row], prompts.answers[row])
            scores = tl.attribution_patch(
                setting.hm.bridge,
                answers.corrupt,
                answers.clean,
                lambda logits, answers=answers: answers.difference(logits).sum(),
                config,
            )
            found.append(scores.edge_scores)
        return found

    def values(found: list[dict[Any, float]]) -> Tensor:
        senders = {site: i for i, site in enumerate(graph.senders)}
        receivers = {site: i for i, site in enumerate(graph.receivers)}
        table = torch.zeros(len(found), len(senders), len(receivers), dtype=torch.float64)
        for row, scores in enumerate(found):
            for (sender, receiver), score in scores.items():
                table[row, senders[_site(sender)], receivers[_site(receiver)]] += score
        return table

    name = f"transformer-lens {version('transformer-lens')} attribution_patch, edges"
    return Peer(name, run, values=values)


def _site(node: Any) -> Site:
    """A node in this library's words."""
    if node.kind == "embed":
        return Site("embed")
    if node.kind == "logits":
        return Site("resid_post", node.layer)
    if node.kind in ("mlp_out", "mlp_in"):
        return Site("mlp", node.layer)
    part = None if node.kind == "attn_head_out" else node.kind[0]
    return Site("head", node.layer, node.head, part)
