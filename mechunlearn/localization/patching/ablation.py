"""What ablations write: zeros, means over facts, or the activations of another fact.

1. ``"zero"`` writes zeros.
2. ``"mean"`` writes the mean activation of all facts at tokens of the same group (before the subject, and
   where every position is patched by itself, at the same position).
3. ``"resample"`` writes what the model has for another fact, drawn by seed, at the tokens of the same group
   counted from the group's end; where the other has fewer, its first is taken again. Only facts with the
   same groups are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.errors import FactError
from mechunlearn.localization.engine.cached_run import activations, capture
from mechunlearn.localization.patching.answer_metrics import AnswerRows, Measure, Metric
from mechunlearn.localization.patching.corruption import Ablation, MeanAblation, Resample
from mechunlearn.localization.patching.positions import Positions, groups_of
from mechunlearn.localization.patching.sweep import PatchTask
from mechunlearn.models.encoding.batch import GROUPS, token_groups
from mechunlearn.models.hooked import HookedModel


def ablations(
    hm: HookedModel,
    asked: AnswerRows,
    metrics: tuple[Metric, ...],
    *,
    to: Ablation,
    names: Sequence[str],
    positions: Positions,
    batch_size: int,
) -> Iterator[PatchTask]:
    """The parts of an ablation sweep.

    Args:
        hm: the model.
        asked: the rows.
        metrics: what is measured.
        to: what is written.
        names: hook points.
        positions: which places.
        batch_size: rows per forward pass.

    Raises:
        FactError: there is one fact alone, or none has the same token groups.
    """
    means = _means(hm, asked, names, positions, batch_size) if isinstance(to, MeanAblation) else {}
    drawn = _other_facts(asked, to.seed or 0) if isinstance(to, Resample) else None
    for place, part in asked.parts(batch_size):
        run = capture(hm, part.batch, keep=names)
        rows = torch.arange(len(part), device=hm.device)[None]
        if drawn is not None:
            source: Mapping[str, Tensor] = _resampled(hm, part, asked.rows(drawn[place]), names)
        elif isinstance(to, MeanAblation):
            keys = _keys(part, positions)
            source = {name: means[name][keys].to(run.kept[name]) for name in names}
        else:
            source = {name: torch.zeros_like(run.kept[name][:1]) for name in names}
            rows = torch.zeros_like(rows)
        measure = Measure(part, metrics).against(hm, run)
        yield PatchTask(run, source, rows, measure, None, samples=1)


def _means(
    hm: HookedModel, asked: AnswerRows, names: Sequence[str], positions: Positions, batch_size: int
) -> dict[str, Float[Tensor, "key ..."]]:
    """Mean activations of all facts at tokens of the same key."""
    if len(set(asked.fact.tolist())) < 2:
        raise FactError(
            'the mean of one fact is its own activation, which changes nothing; corrupt="mean" needs two '
            "facts or more"
        )
    size = len(GROUPS) + asked.batch.tokens.shape[1]
    count = torch.zeros(size, dtype=torch.float64)
    sums: dict[str, Tensor] = {}
    for _, part in asked.parts(batch_size):
        # One row per fact, so that a fact counts once whatever words are asked for.
        chosen = part.batch.mask.bool() & part.own.any(1)[:, None]
        keys = _keys(part, positions)[chosen].cpu()
        count.index_add_(0, keys, torch.ones(len(keys), dtype=torch.float64))
        for name, found in activations(hm, part.batch, names).items():
            picked = _by_position(name, found)[chosen].cpu().double()
            sums.setdefault(name, torch.zeros(size, *picked.shape[1:], dtype=torch.float64))
            sums[name].index_add_(0, keys, picked)
    shared = {name: count.clamp(min=1).reshape(-1, *[1] * (total.ndim - 1)) for name, total in sums.items()}
    return {name: (total / shared[name]).to(hm.device) for name, total in sums.items()}


def _keys(asked: AnswerRows, positions: Positions) -> Int[Tensor, "row pos"]:
    """Which tokens are averaged: those of a group; before the subject, and for ``"each"``, of a position."""
    groups = groups_of(asked)
    position = torch.arange(groups.shape[1], device=groups.device).minimum(asked.batch.end[:, None])
    alone = torch.full_like(groups, -1) if positions == "each" else groups
    return torch.where(alone >= 0, alone, len(GROUPS) + position)


def _by_position(name: str, activation: Float[Tensor, "row ..."]) -> Float[Tensor, "row pos ..."]:
    if name.endswith("hook_pattern"):
        raise FactError(
            "attention patterns of different prompts do not fit each other position by position: they have "
            'no mean and cannot be resampled; ablate them with corrupt="zero", or patch them from another run'
        )
    return activation


def _other_facts(asked: AnswerRows, seed: int) -> Int[Tensor, "row"]:
    """Draw for every row a row of another fact with the same token groups."""
    groups, rng = groups_of(asked), random.Random(seed)
    kinds = [frozenset(row) for row in groups.tolist()]
    fact = asked.fact.tolist()
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
    hm: HookedModel, part: AnswerRows, other: AnswerRows, names: Sequence[str]
) -> dict[str, Float[Tensor, "row ..."]]:
    """The other facts' activations, moved to the positions of the same groups."""
    index = _matching(groups_of(part), token_groups(other.batch))
    found = activations(hm, other.batch, names)
    moved = {}
    for name, activation in found.items():
        at = index.reshape(*index.shape, *[1] * (activation.ndim - 2))
        moved[name] = _by_position(name, activation).gather(1, at.expand(*index.shape, *activation.shape[2:]))
    return moved


def _matching(own: Int[Tensor, "row pos"], other: Int[Tensor, "row width"]) -> Int[Tensor, "row pos"]:
    """For every position the other row's position of the same group, counted from the group's end."""
    index = torch.arange(own.shape[1], device=own.device).clamp(max=other.shape[1] - 1).repeat(len(own), 1)
    for r in range(len(own)):
        for group in set(own[r].tolist()):
            mine, theirs = (own[r] == group).nonzero()[:, 0], (other[r] == group).nonzero()[:, 0]
            if group >= 0 and len(theirs):
                rank = torch.arange(len(mine), 0, -1, device=own.device)
                index[r, mine] = theirs[(len(theirs) - rank).clamp(min=0)]
    return index
