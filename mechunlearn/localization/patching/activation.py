"""Activation patching: write one run's activations into another and see how the answer changes.

1. Every fact has two runs: clean, and corrupted by another subject, by another prompt, or by noise.
   ``"denoising"`` writes clean activations into the corrupted run: what of it brings the answer back?
   ``"noising"`` writes corrupted ones into the clean run: what of it takes the answer away? Ablations write
   zeros, means, or another fact's activations into the clean run.
2. Every site is written at every place by itself, and everything after it is computed anew. The engine
   computes only what can have changed, and the result is that of one complete hooked run per site.
3. A score is the metric of the patched run minus that of the run it was patched into. With `normalized` it is
   divided by the mean difference between the two runs: 1 is the whole effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from tqdm.auto import tqdm
from typing_extensions import TypeIs

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, one_of, require_positive
from mechunlearn.localization.engine.engine import BUDGET, Engine
from mechunlearn.localization.engine.patches import writes_of
from mechunlearn.localization.patching.ablation import ABLATIONS, Ablation, ablations
from mechunlearn.localization.patching.answer_metrics import (
    UNITS,
    Measure,
    Metric,
    ask,
    metrics_of,
    name_of,
    words_of,
)
from mechunlearn.localization.patching.corruption import Corrupt, Pairs, pair
from mechunlearn.localization.patching.positions import Positions, Sites, interventions, labels_of, places_of
from mechunlearn.localization.patching.sweep import PatchTask, SweepResult, sweep
from mechunlearn.models.hooked import HookedModel

Direction = Literal["denoising", "noising"]


def activation_patch(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    sites: Sites = "resid_pre",
    corrupt: Corrupt | Ablation = "subject",
    direction: Direction | None = None,
    positions: Positions = "groups",
    window: int = 1,
    metric: Metric | Sequence[Metric] = "logit_diff",
    normalized: bool = False,
    subjects: Sequence[Fact] | None = None,
    noise: float | int = 3.0,
    samples: int = 3,
    seed: int = 0,
    batch_size: int = 64,
    budget: int | None = None,
    progress: bool = True,
) -> Scores:
    """Patch every site at every place by itself, and measure what that does to the answer.

    Args:
        hm: the model; it is left as it was.
        facts: what is asked; a logit difference needs a `foil`, a `new` answer or `options`.
        sites: a kind (``"resid_pre"``, ``"resid_mid"``, ``"resid_post"``, ``"attn"``, ``"mlp"``, ``"head"``,
            ``"head.q"``, ``"head.k"``, ``"head.v"``, ``"pattern"``) or several, sites, or a mapping from
            the site that names a set to the sites written together.
        corrupt: another ``"subject"``, ``"noise"`` on the subject's embeddings, or facts whose prompts are
            fed instead; or an ablation: ``"zero"``, ``"mean"``, ``"resample"``.
        direction: ``"denoising"`` (clean into corrupted) or ``"noising"`` (corrupted into clean); None for
            denoising, and for noising where the corruption is an ablation.
        positions: token ``"groups"``, ``"each"`` position, or ``"all"`` at once.
        window: neighbouring layers written together, centred on the scored one and cut at the ends.
        metric: ``"logit_diff"``, ``"logprob"`` or ``"probability"`` of the whole answer,
            ``"kl"`` of the next token from the clean run, or a function of the last logits [row d_vocab] and
            of the facts' numbers [row]; or several of them.
        normalized: divide by the mean difference between the two runs.
        subjects: facts whose subjects may be put in; None for `facts` themselves.
        noise: in standard deviations of the subjects' embeddings.
        samples: draws of noise per fact.
        seed: of the draw of subjects, of the noise, or of the facts resampled from.
        batch_size: rows per captured run.
        budget: tokens per batch of patched rows; bounds the memory.
        progress: show a progress bar that counts sites, places and rows.

    Returns:
        Scores over ``fact``, ``site``, ``pos`` (not for ``"all"``) and ``metric`` (if there are several).

    Raises:
        ScoresError: for an option that does not exist, or that does not go with another.
        FactError: no fact finds another subject, or facts and prompts do not fit each other.
        SiteError: the model does not have a site.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> scores = mu.activation_patch(hm, facts[:8], sites=("attn", "mlp"), progress=False)
        >>> scores.only("mlp").top(1)
        Localization(L0.mlp; ...)

    Source: Meng et al. 2022; Heimersheim and Nanda 2024, How to use and interpret activation patching.
    """
    metrics = metrics_of(metric)
    room = BUDGET if budget is None else budget
    require_positive(noise=noise, samples=samples, batch_size=batch_size, budget=room)
    direction = _direction(direction, corrupt, normalized)
    named = interventions(hm, sites, window=window)
    writes = [writes_of(hm, together) for together in named.values()]
    names = tuple(dict.fromkeys(write.name for some in writes for write in some))
    pairs, settings = _asked(
        hm, facts, metrics, names, corrupt=corrupt, direction=direction, positions=positions,
        subjects=subjects, noise=noise, samples=samples, seed=seed, batch_size=batch_size,
    )  # fmt: skip
    total = len(writes) * places_of(pairs.asked, positions) * len(pairs.asked) * pairs.samples
    with tqdm(total=total, desc="activation patching", disable=not progress) as bar:
        engine = Engine.of(hm, budget=budget)
        found = sweep(engine, settings, writes, asked=pairs.asked, positions=positions, bar=bar)
    title = _said(direction, corrupt) + (f", {pairs.note}" if pairs.note else "")
    return scores_of(
        hm, found, list(named), metrics, several=not isinstance(metric, str | Callable), title=title,
        normalized=normalized, tokens=labels_of(pairs.asked, positions), facts=pairs.index,
    )  # fmt: skip


def _asked(
    hm: HookedModel,
    facts: Sequence[Fact],
    metrics: tuple[Metric, ...],
    names: Sequence[str],
    *,
    corrupt: Corrupt | Ablation,
    direction: Direction,
    positions: Positions,
    subjects: Sequence[Fact] | None,
    noise: float | int,
    samples: int,
    seed: int,
    batch_size: int,
) -> tuple[Pairs, Iterator[PatchTask]]:
    """What is asked of which facts, and the parts of the sweep."""
    if _ablates(corrupt):
        pairs = Pairs(ask(hm, facts, words_of(facts, metrics)), None, None, tuple(range(len(facts))))
        return pairs, ablations(
            hm, pairs.asked, metrics, to=corrupt, names=names, positions=positions, seed=seed,
            batch_size=batch_size,
        )  # fmt: skip
    pairs = pair(
        hm, facts, metrics, corrupt=corrupt, subjects=subjects, noise=noise, samples=samples, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip
    return pairs, settings_of(hm, pairs, metrics, names, direction=direction, batch_size=batch_size)


def settings_of(
    hm: HookedModel,
    pairs: Pairs,
    metrics: tuple[Metric, ...],
    names: Sequence[str],
    *,
    direction: Direction,
    batch_size: int,
) -> Iterator[PatchTask]:
    """The parts of a sweep between clean and corrupted runs.

    Args:
        hm: the model.
        pairs: the facts and what corrupts them.
        metrics: what is measured.
        names: hook points that are written.
        direction: which of the two runs is patched.
        batch_size: rows per captured run.
    """
    engine = Engine.of(hm)
    for _, part in pairs.parts(batch_size):
        both = part.runs(hm, keep=names)
        clean, each = both.clean.rows(both.rows), torch.arange(len(both.rows), device=hm.device)
        measure = Measure(both.asked, metrics, numbers=part.index).against(hm, clean)
        if direction == "denoising":
            run, other, source, rows = both.corrupt, clean, both.clean.kept, both.rows
        else:
            run, other, source, rows = clean, both.corrupt, both.corrupt.kept, each
        yield PatchTask(run, source, rows[None], measure, engine.baseline(other, measure), part.samples)


def _direction(direction: Direction | None, corrupt: Corrupt | Ablation, normalized: bool) -> Direction:
    if direction not in (None, "denoising", "noising"):
        raise ScoresError(one_of("direction", direction, ["denoising", "noising"]))
    known = ("subject", "noise", *ABLATIONS)
    if isinstance(corrupt, str) and corrupt not in known:
        raise ScoresError(one_of("corrupt", corrupt, known) + ", or a list of facts")
    if _ablates(corrupt):
        if direction == "denoising" or normalized:
            raise ScoresError(
                f"corrupt={corrupt!r} is an ablation of the clean run, without a second run to denoise from "
                'or to normalize by; leave out direction= and normalized=, or use corrupt="subject"'
            )
        return "noising"
    return direction or "denoising"


def _said(direction: Direction, corrupt: Corrupt | Ablation) -> str:
    if _ablates(corrupt):
        return f"Ablation: {corrupt}"
    by = corrupt if isinstance(corrupt, str) else "given prompts"
    return f"Activation patching: {direction}, corrupted by {by}"


def _ablates(corrupt: Corrupt | Ablation) -> TypeIs[Ablation]:
    return isinstance(corrupt, str) and corrupt in ABLATIONS


def scores_of(
    hm: HookedModel,
    found: SweepResult,
    sites: list[Site],
    metrics: tuple[Metric, ...],
    *,
    several: bool,
    normalized: bool,
    tokens: Sequence[str] | None,
    title: str,
    facts: Sequence[int] | None = None,
) -> Scores:
    """Label what a sweep found."""
    values = found.shares if normalized else found.values
    dims = ["fact", "site", "pos", "metric"]
    if tokens is None:
        values, dims = values[:, :, 0], ["fact", "site", "metric"]
    if not several:
        values, dims = values[..., 0], dims[:-1]
    units = dict.fromkeys(UNITS.get(name_of(metric), name_of(metric)) for metric in metrics)
    return Scores.of(
        values,
        sites,
        dims=tuple(dims),
        params=hm.sites,
        tokens=tokens,
        metrics={name_of(metric): UNITS.get(name_of(metric), "") for metric in metrics} if several else None,
        facts=facts,
        title=title + found.said,
        unit="share of the effect" if normalized else f"change in {' or '.join(units)}",
    )
