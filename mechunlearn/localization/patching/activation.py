"""Activation patching: write one run's activations into another and see how the answer changes.

1. Every fact has two runs: clean, and corrupted by another subject, by another prompt, or by noise.
   ``"denoising"`` writes clean activations into the corrupted run: what of it brings the answer back?
   ``"noising"`` writes corrupted ones into the clean run: what of it takes the answer away? Ablations write
   zeros, means, or another fact's activations into the clean run.
2. Every site is written at every place by itself, and everything after it is computed anew. The engine
   computes only what can have changed, and the result is that of one complete hooked run per site.
3. The change is the metric of the patched run minus that of the run it was patched into. A score says how far
   the site supports the answer: it is the change by denoising, and its negative by noising and ablation. The
   divergence (`"kl"`) grows as the answer goes, so its sign is turned. With `normalized` the change is
   divided by the mean difference between the two runs: 1 is the whole effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from tqdm.auto import tqdm

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.scores.labels import SUPPORT
from mechunlearn.core.scores.scores import Scores
from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, one_of
from mechunlearn.localization.engine.engine import BUDGET, Engine
from mechunlearn.localization.engine.patches import writes_of
from mechunlearn.localization.patching.ablation import ablations
from mechunlearn.localization.patching.answer_metrics import (
    UNITS,
    Measure,
    Metric,
    answer_rows,
    metrics_of,
    name_of,
    words_of,
)
from mechunlearn.localization.patching.corruption import ANY, Ablation, Corrupt, Corruption, corruption_of
from mechunlearn.localization.patching.pairs import Pairs, pair
from mechunlearn.localization.patching.positions import (
    Positions,
    Sites,
    fact_tokens_of,
    interventions,
    labels_of,
    places_of,
)
from mechunlearn.localization.patching.sweep import PatchTask, SweepResult, sweep
from mechunlearn.models.hooked import HookedModel

Direction = Literal["denoising", "noising"]


def activation_patch(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    sites: Sites = "resid_pre",
    corrupt: Corrupt = "subject",
    direction: Direction | None = None,
    positions: Positions = "groups",
    window: int = 1,
    metric: Metric | Sequence[Metric] = "logit_diff",
    normalized: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    budget: int | None = None,
    progress: bool = True,
) -> Scores:
    """Patch every site at every position by itself, and measure what that does to the answer.

    Args:
        hm: the model; it is left as it was.
        facts: the facts; a logit difference needs a `foil`, a `new` answer or `options`.
        sites: a kind (``"resid_pre"``, ``"resid_mid"``, ``"resid_post"``, ``"attn"``, ``"mlp"``, ``"head"``,
            ``"head.q"``, ``"head.k"``, ``"head.v"``, ``"pattern"``) or several, sites, or a mapping from
            the site that names a set to the sites written together.
        corrupt: another ``"subject"`` (`OtherSubject`), ``"noise"`` on the subject's embeddings (`Noise`), or
            facts whose prompts are run instead; or an ablation: ``"zero"`` (`ZeroAblation`), ``"mean"``
            (`MeanAblation`), ``"resample"`` (`Resample`).
        direction: ``"denoising"`` (clean into corrupted) or ``"noising"`` (corrupted into clean); None for
            denoising, and for noising where the corruption is an ablation.
        positions: token ``"groups"``, ``"each"`` position, or ``"all"`` at once.
        window: neighbouring layers written together, centred on the scored one and cut at the ends.
        metric: ``"logit_diff"``, ``"logprob"`` or ``"probability"`` of the whole answer,
            ``"kl"`` of the next token from the clean run, or a function of the last logits [row d_vocab] and
            of the facts' numbers [row], which grows with the answer; or several of them.
        normalized: divide by the mean difference between the two runs.
        seed: seed of the corruption, unless its value has one.
        batch_size: rows per captured run.
        budget: tokens per batch of patched rows; bounds the memory.
        progress: show a progress bar that counts sites, positions and rows.

    Returns:
        Scores over ``fact``, ``site``, ``pos`` (not for ``"all"``) and ``metric`` (if there are several).
        Above 0 a site supports the answer, in every direction; ``scores.change`` is the raw change.

    Raises:
        ScoresError: for an option that does not exist, or that does not go with another.
        FactError: no fact finds another subject, or facts and prompts do not fit each other.
        SiteError: the model does not have a site.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> scores = mu.activation_patch(hm, facts[:4], sites="mlp", progress=False)
        >>> scores.top(1)
        Localization(L0.mlp; ...)

    Source: Meng et al. 2022; Heimersheim and Nanda 2024, How to use and interpret activation patching.
    """
    corruption = corruption_of(corrupt, ANY, seed=seed)
    direction = _direction(direction, corruption, normalized)
    ablates = isinstance(corruption, Ablation)
    return patch_scores(
        hm, facts, interventions(hm, sites, window=window), corruption, direction=direction,
        positions=positions, metric=metric, normalized=normalized, batch_size=batch_size, budget=budget,
        progress="activation patching" if progress else None,
        title=f"Ablation: {corruption.name}" if ablates
        else f"Activation patching: {direction}, corrupted by {corruption.name}",
    )  # fmt: skip


def patch_scores(
    hm: HookedModel,
    facts: Sequence[Fact],
    sites: Mapping[Site, Sequence[Site]],
    corruption: Corruption,
    *,
    direction: Direction,
    positions: Positions,
    metric: Metric | Sequence[Metric],
    title: str,
    unit: str | None = None,
    normalized: bool = False,
    batch_size: int = 64,
    budget: int | None = None,
    progress: str | None = None,
) -> Scores:
    """Sweep over sites, positions and facts, and label the result; options are those of `activation_patch`.

    `sites` are those written together, by the site that names them; `corruption` has its seed; a `unit` of
    None is the change of the metrics; `progress` is the name of the bar, or None for no bar.
    """
    metrics = metrics_of(metric)
    positive(ScoresError, batch_size=batch_size, budget=BUDGET if budget is None else budget)
    writes = [writes_of(hm, together) for together in sites.values()]
    names = tuple(dict.fromkeys(write.name for each in writes for write in each))
    if isinstance(corruption, Ablation):
        pairs = Pairs(answer_rows(hm, facts, words_of(facts, metrics)), None, None, tuple(range(len(facts))))
        tasks = ablations(
            hm, pairs.answers, metrics, to=corruption, names=names, positions=positions, batch_size=batch_size
        )
    else:
        pairs = pair(hm, facts, metrics, corrupt=corruption, batch_size=batch_size)
        tasks = patch_tasks(hm, pairs, metrics, names, direction=direction, batch_size=batch_size)
    total = len(writes) * places_of(pairs.answers, positions) * len(pairs.answers) * pairs.samples
    with tqdm(total=total, desc=progress, disable=progress is None) as bar:
        engine = Engine.of(hm, budget=budget)
        result = sweep(engine, tasks, writes, answers=pairs.answers, positions=positions, bar=bar)
    return scores_of(
        hm, result, list(sites), pairs, metric=metric, positions=positions, direction=direction,
        normalized=normalized, title=title, unit=unit,
    )  # fmt: skip


def patch_tasks(
    hm: HookedModel,
    pairs: Pairs,
    metrics: tuple[Metric, ...],
    names: Sequence[str],
    *,
    direction: Direction,
    batch_size: int,
) -> Iterator[PatchTask]:
    """Capture the clean and the corrupted runs, keeping the hook points `names`, some rows at a time."""
    engine = Engine.of(hm)
    for _, part in pairs.parts(batch_size):
        both = part.runs(hm, keep=names)
        # Each sample of noise is a corrupted row beside the same clean row, which is repeated for it.
        clean, each = both.clean.rows(both.rows), torch.arange(len(both.rows), device=hm.device)
        measure = Measure(both.answers, metrics, numbers=part.index).against(hm, clean)
        if direction == "denoising":
            run, source_run, source, rows = both.corrupt, clean, both.clean.activations, both.rows
        else:
            run, source_run, source, rows = clean, both.corrupt, both.corrupt.activations, each
        yield PatchTask(run, source, rows[None], measure, engine.baseline(source_run, measure), part.samples)


def _direction(direction: Direction | None, corruption: Corruption, normalized: bool) -> Direction:
    if direction not in (None, "denoising", "noising"):
        raise ScoresError(one_of("direction", direction, ["denoising", "noising"]))
    if not isinstance(corruption, Ablation):
        return direction or "denoising"
    if direction == "denoising" or normalized:
        raise ScoresError(
            f"corrupt={corruption.name!r} is an ablation of the clean run, without a second run to denoise "
            'from or to normalize by; leave out direction= and normalized=, or use corrupt="subject"'
        )
    return "noising"


def support_sign(metric: Metric, direction: Direction) -> int:
    """The sign by which a change of a metric says that the site supports the answer.

    A function of the user's should grow with the answer, as a logit difference does.
    """
    restores = 1 if direction == "denoising" else -1
    return -restores if metric == "kl" else restores


def scores_of(
    hm: HookedModel,
    result: SweepResult,
    sites: list[Site],
    pairs: Pairs,
    *,
    metric: Metric | Sequence[Metric],
    positions: Positions,
    direction: Direction,
    normalized: bool,
    title: str,
    unit: str | None = None,
) -> Scores:
    """Label the result of a sweep, without the axes of which it has one entry."""
    metrics, several = metrics_of(metric), not isinstance(metric, str | Callable)
    signs = [1 if normalized else support_sign(each, direction) for each in metrics]
    values = (result.shares if normalized else result.values) * torch.tensor(signs)
    dims = ["fact", "site", "pos", "metric"]
    if positions == "all":
        values, dims = values[:, :, 0], ["fact", "site", "metric"]
    if not several:
        values, dims = values[..., 0], dims[:-1]
    names = {name_of(each): UNITS.get(name_of(each), "") or name_of(each) for each in metrics}
    units = {name: f"{'' if normalized else SUPPORT}{unit}" for name, unit in names.items()}
    measured = " or ".join(dict.fromkeys(names.values()))
    return Scores.of(
        values,
        sites,
        dims=tuple(dims),
        params=hm.sites,
        tokens=labels_of(pairs.answers, positions),
        metrics=units if several else None,
        facts=pairs.index,
        fact_tokens=fact_tokens_of(pairs.answers, positions),
        change_signs=signs if several else signs[0],
        title=title + (f", {pairs.note}" if pairs.note else "") + result.remarks,
        unit="share of the effect" if normalized else unit or f"{SUPPORT}{measured}",
    )
