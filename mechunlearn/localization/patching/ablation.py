"""Ablations: zeros, means over facts, or the activations of another fact, written into the clean run.

1. ``"zero"`` writes zeros.
2. ``"mean"`` writes the mean activation of all facts at tokens of the same group (before the subject, and
   where every position is patched by itself, at the same position).
3. ``"resample"`` writes what the model has for another fact, drawn by seed, at the tokens of the same group
   counted from the group's end; where the other fact has fewer, its first is repeated. Only facts with
   the same groups are chosen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.errors import FactError
from mechunlearn.localization.engine.cached_run import cached_run
from mechunlearn.localization.patching.answer_metrics import AnswerRows, Measure, Metric
from mechunlearn.localization.patching.corruption import Ablation, MeanAblation, Resample
from mechunlearn.localization.patching.positions import Positions, groups_of
from mechunlearn.localization.patching.sweep import PatchTask
from mechunlearn.models.activations import activations
from mechunlearn.models.encoding.batch import GROUPS, token_groups
from mechunlearn.models.hooked import HookedModel


def ablations(
    hm: HookedModel,
    answers: AnswerRows,
    metrics: tuple[Metric, ...],
    *,
    to: Ablation,
    names: Sequence[str],
    positions: Positions,
    batch_size: int,
) -> Iterator[PatchTask]:
    """Capture the clean runs and what is written into them at the hook points `names`, some rows at a time.

    FactError is raised if there is one fact alone, or if none has the same token groups.
    """
    means = _means(hm, answers, names, positions, batch_size) if isinstance(to, MeanAblation) else {}
    drawn = _other_facts(answers, to.seed or 0) if isinstance(to, Resample) else None
    for span, part in answers.parts(batch_size):
        run = cached_run(hm, part.batch, names)
        rows = torch.arange(len(part), device=hm.device)[None]
        if drawn is not None:
            source: Mapping[str, Tensor] = _resampled(hm, part, answers.rows(drawn[span]), names)
        elif isinstance(to, MeanAblation):
            keys = _keys(part, positions)
            source = {name: means[name][keys].to(run.activations[name]) for name in names}
        else:
            source = {name: torch.zeros_like(run.activations[name][:1]) for name in names}
            rows = torch.zeros_like(rows)
        measure = Measure(part, metrics).against(hm, run)
        yield PatchTask(run, source, rows, measure, None, samples=1)


def _means(
    hm: HookedModel, answers: AnswerRows, names: Sequence[str], positions: Positions, batch_size: int
) -> dict[str, Float[Tensor, "key ..."]]:
    """Mean activations of all facts at tokens of the same key."""
    if len(set(answers.fact.tolist())) < 2:
        raise FactError(
            'the mean of one fact is its own activation, which changes nothing; corrupt="mean" needs two '
            "facts or more"
        )
    size = len(GROUPS) + answers.batch.tokens.shape[1]
    count = torch.zeros(size, dtype=torch.float64)
    sums: dict[str, Tensor] = {}
    for _, part in answers.parts(batch_size):
        # One row per fact, so that a fact counts once however many of its words are scored.
        chosen = part.batch.mask.bool() & part.is_answer.any(1)[:, None]
        keys = _keys(part, positions)[chosen].cpu()
        count.index_add_(0, keys, torch.ones(len(keys), dtype=torch.float64))
        for name, activation in activations(hm, part.batch, names).items():
            rows = _by_position(name, activation)[chosen].cpu().double()
            sums.setdefault(name, torch.zeros(size, *rows.shape[1:], dtype=torch.float64))
            sums[name].index_add_(0, keys, rows)
    counts = {name: count.clamp(min=1).reshape(-1, *[1] * (total.ndim - 1)) for name, total in sums.items()}
    return {name: (total / counts[name]).to(hm.device) for name, total in sums.items()}


def _keys(answers: AnswerRows, positions: Positions) -> Int[Tensor, "row pos"]:
    """The key by which tokens are averaged: the group; before the subject or for ``"each"`` the position."""
    groups = groups_of(answers)
    # Tokens of the answer belong to the last token of the prompt.
    position = torch.arange(groups.shape[1], device=groups.device).minimum(answers.batch.end[:, None])
    keys = torch.full_like(groups, -1) if positions == "each" else groups
    return torch.where(keys >= 0, keys, len(GROUPS) + position)


def _by_position(name: str, activation: Float[Tensor, "row ..."]) -> Float[Tensor, "row pos ..."]:
    if name.endswith("hook_pattern"):
        raise FactError(
            "attention patterns of different prompts do not fit each other position by position: they have "
            'no mean and cannot be resampled; ablate them with corrupt="zero", or patch them from another run'
        )
    return activation


def _other_facts(answers: AnswerRows, seed: int) -> Int[Tensor, "row"]:
    """Draw for every row a row of another fact with the same token groups."""
    groups, rng = groups_of(answers), random.Random(seed)
    kinds = [frozenset(row) for row in groups.tolist()]
    fact = answers.fact.tolist()
    # The first row of every fact: backwards, an earlier row replaces a later one.
    first = {f: r for r, f in reversed(list(enumerate(fact)))}
    drawn: dict[int, int] = {}
    for f, r in sorted(first.items()):
        fits = [s for g, s in sorted(first.items()) if g != f and kinds[s] == kinds[r]]
        if not fits:
            raise FactError(
                f"none of the {len(first)} facts has the same token groups as number {f}, which resampling "
                'needs; give more facts, or use corrupt="mean"'
            )
        drawn[f] = rng.choice(fits)
    return torch.tensor([drawn[f] for f in fact], device=groups.device)


def _resampled(
    hm: HookedModel, part: AnswerRows, drawn: AnswerRows, names: Sequence[str]
) -> dict[str, Float[Tensor, "row ..."]]:
    """The other facts' activations, moved to the positions of the same groups."""
    index = _matching(groups_of(part), token_groups(drawn.batch))
    moved = {}
    for name, activation in activations(hm, drawn.batch, names).items():
        at = index.reshape(*index.shape, *[1] * (activation.ndim - 2))
        moved[name] = _by_position(name, activation).gather(1, at.expand(*index.shape, *activation.shape[2:]))
    return moved


def _matching(groups: Int[Tensor, "row pos"], drawn: Int[Tensor, "row width"]) -> Int[Tensor, "row pos"]:
    """For every position the drawn row's position of the same group, counted from the group's end."""
    columns = torch.arange(groups.shape[1], device=groups.device)
    index = columns.clamp(max=drawn.shape[1] - 1).repeat(len(groups), 1)
    for r in range(len(groups)):
        for group in set(groups[r].tolist()):
            target, source = (groups[r] == group).nonzero()[:, 0], (drawn[r] == group).nonzero()[:, 0]
            if group >= 0 and len(source):
                rank = torch.arange(len(target), 0, -1, device=groups.device)
                index[r, target] = source[(len(source) - rank).clamp(min=0)]
    return index
