"""Read the answer with the unembedding: from the residual stream at every depth, and from each component.

**Logit lens.** The residual stream is captured at single positions of every prompt, and every state is read
by the model's own final norm, unembedding and softcap, as if the model ended there.

**Direct logit attribution.** The last residual stream is the sum of what the embedding, the attentions and
the MLPs wrote. With the final norm's scale as it is at the last token, the difference of two logits is linear
in that sum:

1. In a copy of the model, norms are folded into the weights (``hm.folded()``).
2. What each component writes at the last token of each prompt is captured.
3. Its dot product with the answer's direction, minus that with the direction of what the answer is compared
   with, is its credit.

The credits sum to the logit difference (before a softcap) minus that of the unembedding's biases, to which
folding adds the final norm's. What a component does through later ones is not in them (see ``attribution``).

Both are TransformerLens's, applied to facts: prompts of any length, answers against foils. They read one
position, so of a word of several tokens they score the first, and then say so in their title.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.metrics import rank, token_logprobs
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ModelError, ScoresError, one_of
from mechunlearn.localization.answer_tokens import FirstTokens, contrast, first_tokens
from mechunlearn.localization.patching.positions import Component, layer_sites
from mechunlearn.models.activations import capture, probe_sites
from mechunlearn.models.encoding.batch import GROUPS, Batch, token_groups
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel

LensPosition = Literal["last", "last_subject", "groups"]
LensMetric = Literal["logit_diff", "logprob", "probability", "rank"]

_UNITS = dict(zip(get_args(LensMetric), ("logits", "nats", "probability", "tokens above"), strict=True))
_ROWS = 64  # vectors unembedded at a time


def logit_lens(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    positions: LensPosition = "last",
    metric: LensMetric = "logit_diff",
    batch_size: int = 64,
    progress: bool = True,
) -> Scores:
    """Read the answer from the residual stream at every depth, as if the model ended there.

    It finds an answer in the coordinates of the output. What a layer holds in others, a `probe` finds.

    Args:
        hm: the model.
        facts: their prompts are run; for a logit difference each needs a `foil`, a `new` answer or `options`.
        positions: read at the ``"last"`` token of the prompt, at the ``"last_subject"`` token, or at all
            tokens, averaged by token ``"groups"`` as in causal tracing.
        metric: ``"logit_diff"`` (answer less foil, new answer, or mean of the other options),
            ``"logprob"`` or ``"probability"`` of the answer, or its ``"rank"`` (0: the likeliest).
        batch_size: prompts per forward pass.
        progress: show a progress bar.

    Returns:
        Scores over ``fact``, ``site`` (the embedding, every ``resid_mid`` and ``resid_post``) and, by groups,
        ``pos``. The title says ``(first token)`` if some word has several.

    Raises:
        ScoresError: for unknown `positions` or `metric`, or a `batch_size` below 1.
        FactError: a fact has nothing to compare its answer with, or both begin with the same token.
        ModelError: TransformerLens cannot read this model's residual stream.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> figure = mu.logit_lens(hm, facts[:4], progress=False).curves()

    Source: nostalgebraist 2020, interpreting GPT: the logit lens.
    """
    if positions not in get_args(LensPosition):
        raise ScoresError(one_of("positions", positions, get_args(LensPosition)))
    if metric not in _UNITS:
        raise ScoresError(one_of("metric", metric, _UNITS))
    positive(ScoresError, batch_size=batch_size)
    compared = metric == "logit_diff"
    words = first_tokens(hm, facts, [contrast(f) if compared else {f.answer: 1.0} for f in facts])
    batch, sites, parts = encode(hm, facts, answer=None), probe_sites(hm), []
    with tqdm(total=len(sites) * len(facts), desc="logit lens", disable=not progress) as bar:
        for rows in torch.split(torch.arange(len(batch)), batch_size):
            part = FirstTokens(words.ids[rows], words.weight[rows], words.single)
            parts.append(_lens(hm, batch.rows(rows).trimmed(), part, sites, positions, metric, bar))
    values = torch.cat(parts)
    read_at = "by token" if positions == "groups" else f"at the {positions} token"
    return Scores.of(
        values if positions == "groups" else values[:, :, 0],
        sites,
        dims=("fact", "site", "pos") if positions == "groups" else ("fact", "site"),
        tokens=GROUPS if positions == "groups" else None,
        title=f"Logit lens {read_at}: {metric}{words.note}",
        unit=_UNITS[metric],
    )


def _lens(
    hm: HookedModel,
    batch: Batch,
    words: FirstTokens,
    sites: Sequence[Site],
    positions: LensPosition,
    metric: LensMetric,
    bar: Any,
) -> Float[Tensor, "fact site at"]:
    """The metric at all sites and positions of one batch."""
    where = (batch.subject_last if positions == "last_subject" else batch.end)[:, None]
    if positions == "groups":
        where = torch.minimum(torch.arange(batch.tokens.shape[1], device=where.device)[None], where)
    names = [hm.arch.hooks(site)[0].name for site in sites]
    states = capture(hm.bridge, batch.tokens, names, where, mask=batch.mask, batch_size=len(batch))
    columns = []
    for name in names:
        columns.append(_read(hm, states.pop(name), words, metric))
        bar.update(len(batch))
    values = torch.stack(columns, dim=1)
    return _grouped(values, token_groups(batch).cpu()) if positions == "groups" else values


def _read(
    hm: HookedModel, states: Float[Tensor, "fact at d_model"], words: FirstTokens, metric: LensMetric
) -> Float[Tensor, "fact at"]:
    """The metric of every state; some states at a time, since each gives all logits."""
    from transformer_lens.tools.analysis import logit_readout

    width, parts = states.shape[1], []
    ids, weight = words.ids.repeat_interleave(width, 0), words.weight.repeat_interleave(width, 0)
    for rows in torch.split(torch.arange(len(ids)), _ROWS):
        with _transformer_lens("the logit lens", "a probe, which fits its own directions (mu.probe)"):
            logits = logit_readout(hm.bridge, states.flatten(0, 1)[rows]).values.cpu()
        tokens = ids[rows]
        if metric == "logit_diff":
            parts.append((logits.gather(1, tokens).double() * weight[rows]).sum(1))
        elif metric == "rank":
            parts.append(rank(logits, tokens[:, 0]).double())
        else:
            logprobs = token_logprobs(logits[:, None], tokens[:, :1])[:, 0].double()
            parts.append(logprobs if metric == "logprob" else logprobs.exp())
    return torch.cat(parts).reshape(-1, width)


def _grouped(
    values: Float[Tensor, "fact site pos"], groups: Int[Tensor, "fact pos"]
) -> Float[Tensor, "fact site group"]:
    """The mean over the tokens of each group; not-a-number where a prompt has none."""
    inside = torch.stack([groups == number for number in range(len(GROUPS))], dim=-1).to(values)
    return torch.einsum("fsp,fpg->fsg", values, inside) / inside.sum(1)[:, None]


def direct_logit_attribution(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    sites: Component | Sequence[Component] = ("attn", "mlp"),
    batch_size: int = 64,
    progress: bool = True,
) -> Scores:
    """Split the logit difference at the last token into what each component wrote there.

    A component that looks the answer up, for others to carry out, gets no credit: see `attribution`.

    Args:
        hm: the model; the norms of a copy are folded, which takes its memory once more.
        facts: each needs a `foil`, a `new` answer or `options`.
        sites: ``"attn"`` for whole attentions, ``"mlp"`` for MLPs, ``"head"`` for heads; or several. Biases
            that pass through the values are folded into attention's output bias, which is no head's.
        batch_size: prompts per forward pass.
        progress: show a progress bar.

    Returns:
        Scores over ``fact`` and ``site``, in logits; above 0 speaks for the answer. ``embed`` is all that
        enters the first block, positions included; ``.only("attn", "mlp")`` leaves it out of a selection.

    Raises:
        ScoresError: for unknown `sites`, or a `batch_size` below 1.
        FactError: a fact has nothing to compare its answer with, or both begin with the same token.
        ModelError: TransformerLens cannot fold or split this model.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> credit = mu.direct_logit_attribution(hm, facts[:4], progress=False)
        >>> len(credit.only("attn", "mlp").top(2))
        2

    Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; Wang et al. 2022.
    """
    named = [Site("embed"), *layer_sites(hm, sites, get_args(Component))]
    by_head = any(site.kind == "head" for site in named)
    positive(ScoresError, batch_size=batch_size)
    words = first_tokens(hm, facts, [contrast(fact) for fact in facts])
    with _transformer_lens("direct logit attribution", "mu.attribution, which needs no folding"):
        folded = hm.folded()
    batch, labels = encode(hm, facts, answer=None), _labels(named[1:])
    values = torch.zeros(len(batch), len(named), dtype=torch.float64)
    with tqdm(total=len(named) * len(facts), desc="direct logit attribution", disable=not progress) as bar:
        for rows in torch.split(torch.arange(len(batch)), batch_size):
            cache = _written(folded, batch.rows(rows).trimmed(), by_head=by_head)
            for unit in ("component", "head") if by_head else ("component",):
                for label, credit in _credits(folded, cache, words, rows, unit).items():
                    if label in labels:
                        values[rows, named.index(labels[label])] += credit
            bar.update(len(named) * len(rows))
    return Scores.of(
        values,
        named,
        dims=("fact", "site"),
        params=hm.sites,
        title=f"Direct logit attribution: logit difference{words.note}",
        unit="logits",
    )


def _labels(sites: Sequence[Site]) -> dict[str, Site]:
    """The site of each component, by the label that TransformerLens gives it."""
    embed, labels = Site("embed"), {}
    for site in sites:
        head = site.kind == "head"
        labels[f"L{site.layer}H{site.index}" if head else f"{site.layer}_{site.kind}_out"] = site
    return labels | {"embed": embed, "pos_embed": embed}


@torch.no_grad()
def _written(folded: Any, batch: Batch, *, by_head: bool) -> dict[str, Tensor]:
    """What every component writes at each prompt's last token, as an activation cache of one position."""
    layers = range(folded.cfg.n_layers)
    names = [
        "hook_embed",
        *(["hook_pos_embed"] if hasattr(folded, "pos_embed") else []),
        "ln_final.hook_scale",
    ]
    names += [f"blocks.{layer}.hook_{part}_out" for layer in layers for part in ("attn", "mlp")]
    if by_head:
        names += [f"blocks.{layer}.attn.hook_z" for layer in layers]
        names += [name for layer in layers if (name := _post_norm(layer)) in folded.hook_dict]
        names.append(f"blocks.{layers[-1]}.hook_resid_post")
    states = capture(folded, batch.tokens, names, batch.end[:, None], mask=batch.mask, batch_size=len(batch))
    wide = torch.promote_types(states["hook_embed"].dtype, torch.float32)
    store = {name: state.to(folded.W_U.device, wide) for name, state in states.items()}
    for layer in (layer for layer in layers if _post_norm(layer) in store):
        # A norm follows these heads, which TransformerLens's split does not take into account.
        block = folded.blocks[layer]
        gain = block.ln1_post.weight + (1 if folded.cfg.rmsnorm_uses_offset else 0)
        heads = torch.einsum(
            "...hd,hdm->...hm", store[f"blocks.{layer}.attn.hook_z"], block.attn.W_O.to(wide)
        )
        store[f"blocks.{layer}.attn.hook_result"] = (
            heads / store[_post_norm(layer)][..., None] * gain.to(wide)
        )
    return store


def _post_norm(layer: int) -> str:
    return f"blocks.{layer}.ln1_post.hook_scale"


@torch.no_grad()
def _credits(
    folded: Any, store: dict[str, Tensor], words: FirstTokens, rows: Int[Tensor, "row"], unit: str
) -> dict[str, Float[Tensor, "row"]]:
    """The credit of every label: its share of the weighted sum of the words' logits."""
    from transformer_lens import ActivationCache
    from transformer_lens.tools.analysis import direct_logit_attribution as split

    credits: dict[str, Tensor] = {}
    cache = ActivationCache(store, folded)
    for ids, weight in zip(words.ids[rows].T, words.weight[rows].T, strict=True):
        with _transformer_lens("direct logit attribution", "mu.attribution, which needs no folding"):
            shares = split(folded, cache=cache, answer_tokens=ids.to(folded.W_U.device), unit=unit, pos=-1)
        for label, credit in zip(shares.labels, shares.attribution, strict=True):
            credits[label] = credits.get(label, 0) + credit.cpu().double() * weight
    return credits


@contextmanager
def _transformer_lens(what: str, remedy: str) -> Iterator[None]:
    """Turn a refusal of TransformerLens into an error that names a remedy."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(f"TransformerLens refuses {what} for this model: {error}. Use {remedy}") from error
