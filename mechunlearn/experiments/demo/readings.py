"""Where the model looks facts up, by three readings that share nothing but the model.

1. *Probing*: how much better a linear probe names the answer at the last subject token after an MLP than
   before it.
2. *Swapping*: how much of the preference for the person's answer moves to another person's when the MLP's
   output at the last subject token is taken from that person's prompt.
3. *Ablating*: how much accuracy is lost when the MLP's output on all subject tokens is replaced by its mean
   over these tokens.

They are reported side by side; no edit is chosen by their agreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.hooks import ablate
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.viz.curves import line_plot
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel

if TYPE_CHECKING:
    import plotly.graph_objects as go


def ablation(hm: HookedModel, facts: Sequence[Fact]) -> Scores:
    """Score each MLP by the accuracy lost when it is mean-ablated on the subject's tokens.

    The facts must have options of one token each; the likeliest option counts as the model's answer.
    """
    batch = encode(hm, facts, answer=None)
    options = torch.stack([_first_ids(hm, fact) for fact in facts])
    correct = torch.tensor([fact.options.index(fact.answer) for fact in facts])
    rows = torch.arange(len(facts))

    def accuracy(layer: int | None) -> float:
        name = f"blocks.{layer}.hook_mlp_out"
        hooks = [] if layer is None else [ablate(name, to="mean", at=batch.subject)]
        with torch.no_grad():
            logits = hm.run_with_hooks(batch.tokens, fwd_hooks=hooks, attention_mask=batch.mask)
        # The logits at `end`, the last prompt token, predict the answer; only the options compete.
        predicted = logits[rows, batch.end].gather(1, options).argmax(1)
        return float((predicted == correct).float().mean())

    unablated = accuracy(None)
    sites = tuple(hm.sites.mlps())
    return Scores.of(
        torch.tensor([unablated - accuracy(site.layer) for site in sites]),
        sites,
        params={site: hm.size([site]) for site in sites},
        total_params=hm.sites.total,
        title="MLP mean-ablated on the subject's tokens",
        unit="accuracy lost",
    )


def _first_ids(hm: HookedModel, fact: Fact) -> Int[Tensor, " option"]:
    return encode(hm, [fact] * len(fact.options), answer=fact.options).answer_ids[:, 0]


def side_by_side(lookup: Scores, ablated: Scores) -> go.Figure:
    """Draw the three readings in one figure; the evidence of ``lookup`` holds the first two."""
    layers = [f"L{site.layer}" for site in ablated.sites]
    curves = {
        "probe gain": lookup.evidence["gain"].reduce().values.values,
        "swap effect": lookup.evidence["swap"].reduce().values.values,
        "accuracy lost to ablation": ablated.values.values,
    }
    return line_plot(
        {name: [float(v) for v in values] for name, values in curves.items()},
        x=layers,
        title="Where the MLPs look the sport up: three independent readings",
        unit="share",
    )
