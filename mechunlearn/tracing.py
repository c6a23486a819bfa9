"""Causal tracing: break the subject, mend one place, and see how much of the answer comes back.

1. Every prompt is run once as it is, and the states to restore later are kept.
2. Gaussian noise is added to the embeddings of the subject's tokens, `noise` times the standard deviation of
   the subjects' embeddings, in several seeded samples. The probability of the fact's own whole answer falls
   to its corrupted value.
3. For every layer and token group, the corrupted run is repeated *with the same noise*, but with the clean
   state of a window of layers written back at the tokens of that group.
4. The score is the probability that comes back: restored minus corrupted, averaged over the samples.

The noise is drawn per fact in the order of the facts, in float32 on the CPU, so it does not depend on batch
size, device or precision. Tokens of the answer itself (only answers of several tokens have them in the input)
are restored together with the last token of the prompt: these are the positions at which the answer is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechunlearn.encoding import GROUPS, IGNORED, Batch, encode, token_groups
from mechunlearn.errors import ScoresError, one_of
from mechunlearn.facts.fact import Fact
from mechunlearn.hooks import cache, patch
from mechunlearn.metrics import answer_probability
from mechunlearn.model import HookedModel
from mechunlearn.scores import Scores
from mechunlearn.sites import Site

Restore = Literal["resid", "mlp", "attn"]
_KIND = {"resid": "resid_post", "mlp": "mlp", "attn": "attn"}


def causal_trace(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    restore: Restore | tuple[Restore, ...] = "mlp",
    noise: float = 3.0,
    samples: int = 3,
    window: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Scores:
    """Trace where restoring a clean state brings the answer back although the subject is noise.

    A component with a high score at the subject's tokens helps to look the fact up; one with a high score at
    the last token carries the answer out.

    Args:
        hm: the model; it is left as it was.
        facts: each is scored on the probability of its own whole answer.
        restore: ``"mlp"`` or ``"attn"`` (what the component writes into the residual stream), ``"resid"``
            (the residual stream after the block; such scores draw but select no weights), or several of them,
            as in ``("attn", "mlp")``, to rank all components together.
        noise: in units of the standard deviation of the subjects' embeddings; 3 is the custom.
        samples: draws of noise per fact.
        window: neighbouring layers restored together, centred on the scored one and cut at the ends.
        seed: of the noise.
        batch_size: prompts per forward pass, samples counted.
        progress: show a progress bar.

    Returns:
        Scores over ``fact``, ``site`` and ``pos`` (the five token groups), in probability; not-a-number where
        a prompt has no token of a group.

    Raises:
        ScoresError: for an unknown `restore`, or a number out of range.
        FactError: if there are no facts.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> trace = mu.causal_trace(hm, facts[:2], samples=1, progress=False)
        >>> trace.top(1)
        Localization(L0.mlp; ...)

    Source: Meng et al. 2022, Locating and Editing Factual Associations in GPT.
    """
    sites = _sites(hm, restore)
    _require_positive(noise=noise, samples=samples, window=window, batch_size=batch_size)
    batch = encode(hm, facts)
    draws = _draws(hm, batch, noise, samples, seed, batch_size)
    values = torch.full((len(batch), len(sites), len(GROUPS)), torch.nan, dtype=torch.float64)
    step = max(1, batch_size // samples)
    total = len(range(0, len(batch), step)) * len(sites) * len(GROUPS)
    with torch.no_grad(), tqdm(total=total, desc="causal trace", disable=not progress) as bar:
        for start in range(0, len(batch), step):
            here = slice(start, start + step)
            run = _corrupted(hm, batch.rows(here).trimmed(), draws[here], samples, sites)
            for s, site in enumerate(sites):
                for group in range(len(GROUPS)):
                    values[here, s, group] = _restored(run, _window(hm, site, window), group)
                    bar.update()
    kinds = restore if isinstance(restore, str) else " and ".join(restore)
    return Scores.of(
        values,
        sites,
        dims=("fact", "site", "pos"),
        params={site: hm.arch.count(site) for site in sites if site.has_weights},
        total_params=hm.sites.size(hm.sites.attns() | hm.sites.mlps()),
        tokens=GROUPS,
        title=f"Causal tracing: {kinds} restored, noise {noise:g}, {samples} samples, window {window}",
        unit="probability restored",
    )


@dataclass(frozen=True)
class _Run:
    """Corrupted rows, `samples` for each fact, and the clean states to restore in them."""

    hm: HookedModel
    batch: Batch
    groups: Int[Tensor, "row pos"]
    noised: Float[Tensor, "row pos d_model"]
    clean: Mapping[str, Float[Tensor, "fact pos d_model"]]
    samples: int

    def probability(
        self, rows: Int[Tensor, "kept"], names: Sequence[str], group: int
    ) -> Float[Tensor, "kept"]:
        """The answers' probability with the same noise as ever, and named states restored in one group."""
        batch, at = self.batch.rows(rows), self.groups[rows] == group
        hooks = [patch("hook_embed", self.noised[rows], at=batch.subject)]
        hooks += [patch(name, self.clean[name][rows // self.samples], at=at) for name in names]
        logits = self.hm.run_with_hooks(batch.tokens, attention_mask=batch.mask, fwd_hooks=hooks)
        return answer_probability(logits, batch.labels)

    @cached_property
    def baseline(self) -> Float[Tensor, "row"]:
        """The answers' probability with noise alone."""
        return self.probability(torch.arange(len(self.batch), device=self.noised.device), (), -1)


def _corrupted(
    hm: HookedModel, facts: Batch, draws: Sequence[Tensor], samples: int, sites: Sequence[Site]
) -> _Run:
    """Run prompts clean, keep what will be restored, and lay out the noised rows."""
    names = dict.fromkeys(["hook_embed", *(_name(hm, site) for site in sites)])
    clean: dict[str, Tensor] = {}
    hm.run_with_hooks(
        facts.tokens, attention_mask=facts.mask, fwd_hooks=[cache(name, clean) for name in names]
    )
    groups = token_groups(facts)
    # The answer is read at its own tokens too, if it has several.
    position = torch.arange(groups.shape[1], device=groups.device)
    reading = (facts.labels != IGNORED) & (position > facts.end[:, None])
    groups = torch.where(reading, groups.gather(1, facts.end[:, None]), groups)
    rows = torch.arange(len(facts), device=groups.device).repeat_interleave(samples)
    noised = clean["hook_embed"][rows]
    for fact, draw in zip(range(len(facts)), draws, strict=True):
        noised[fact * samples : (fact + 1) * samples, facts.subject[fact]] += draw.to(noised)
    return _Run(hm, facts.rows(rows), groups[rows], noised, clean, samples)


def _restored(run: _Run, names: Sequence[str], group: int) -> Float[Tensor, "fact"]:
    """The probability that comes back per fact, not-a-number where the prompt has no token of the group."""
    gain = torch.full_like(run.baseline, torch.nan)
    rows = (run.groups == group).any(1).nonzero()[:, 0]
    if len(rows):
        gain[rows] = run.probability(rows, names, group) - run.baseline[rows]
    return gain.view(-1, run.samples).cpu().double().mean(1)


def _draws(
    hm: HookedModel, batch: Batch, noise: float, samples: int, seed: int, batch_size: int
) -> list[Float[Tensor, "sample token d_model"]]:
    """Noise for the subject of every fact, scaled to the spread of all subjects' embeddings."""
    embedded = []
    for start in range(0, len(batch), batch_size):
        part, store = batch.rows(slice(start, start + batch_size)).trimmed(), dict[str, Tensor]()
        with torch.no_grad():
            hm.run_with_hooks(
                part.tokens, attention_mask=part.mask, fwd_hooks=[cache("hook_embed", store)], stop_at_layer=1
            )
        embedded.append(store["hook_embed"][part.subject].cpu().double())
    spread, width = torch.cat(embedded).std(), embedded[0].shape[-1]
    generator = torch.Generator().manual_seed(seed)
    lengths = batch.subject.sum(1).tolist()
    return [noise * spread * torch.randn(samples, n, width, generator=generator).double() for n in lengths]


def _sites(hm: HookedModel, restore: Restore | tuple[Restore, ...]) -> list[Site]:
    kinds = (restore,) if isinstance(restore, str) else restore
    for kind in kinds:
        if kind not in _KIND:
            raise ScoresError(one_of("restore", kind, _KIND) + ", or a tuple of them")
    if not kinds or len(set(kinds)) < len(kinds):
        raise ScoresError(f"restore must name one or more different kinds of {tuple(_KIND)}; not {restore!r}")
    return [Site(_KIND[kind], layer) for layer in range(hm.arch.shape.n_layers) for kind in kinds]


def _name(hm: HookedModel, site: Site) -> str:
    return hm.arch.hooks(site)[0].name


def _window(hm: HookedModel, site: Site, window: int) -> list[str]:
    """The hooks of the window's layers: as many before as after, one more before where it is even."""
    centre = site.layer or 0
    layers = range(max(0, centre - window // 2), min(hm.arch.shape.n_layers, centre + (window + 1) // 2))
    return [_name(hm, Site(site.kind, layer)) for layer in layers]


def _require_positive(**values: float | int) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ScoresError(f"{name} must be above zero; not {value!r}")
