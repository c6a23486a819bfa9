"""Path patching: the effect of one component on the answer through chosen receivers alone.

1. Every fact has two runs, clean and corrupted. ``"noising"`` patches the clean run with what a sender writes
   in the corrupted one, as Wang et al. and Goldowsky-Dill et al. do; ``"denoising"`` is the reverse.
2. For each sender by itself: its output is the other run's, while heads between it and the receivers write
   what they write in this run, and so do the MLPs, unless they are recomputed. What the receivers then read
   is recorded.
3. The run is repeated with the receivers reading that, all of them together, and everything after them live.
4. A score is the metric of that run minus that of the unpatched one. A receiver that comes before the sender
   reads nothing new, and its score is exactly 0.

No norm is ever held: a receiver reads the changed stream through its own norm, and under a norm after
attention (Gemma-2) a head's share of it is computed anew. Step 2 needs no run of the model (`propagation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mechunlearn.core.checks import positive
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.scores.scores import Scores
from mechunlearn.errors import ScoresError, one_of
from mechunlearn.localization.engine.block_functions import BlockFunctions
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.patching.activation import Direction, patch_tasks, scores_of
from mechunlearn.localization.patching.answer_metrics import Metric, metrics_of
from mechunlearn.localization.patching.corruption import Corrupt
from mechunlearn.localization.patching.pairs import Pairs, pair
from mechunlearn.localization.patching.positions import Positions, places_of, where_of
from mechunlearn.localization.patching.sweep import SweepResult
from mechunlearn.localization.path_patching.paths import Mlps, Paths, Receivers, Senders
from mechunlearn.localization.path_patching.sweep import PathTask, path_sweep
from mechunlearn.models.hooked import HookedModel


def path_patch(
    hm: HookedModel,
    facts: Sequence[Fact],
    sites: Senders,
    receivers: Receivers = "logits",
    *,
    mlps: Mlps = "freeze",
    positions: Positions = "all",
    corrupt: Corrupt = "subject",
    direction: Direction = "noising",
    metric: Metric | Sequence[Metric] = "logit_diff",
    normalized: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    budget: int | None = None,
    progress: bool = True,
) -> Scores:
    """Patch the paths from every sender, each by itself, to the receivers together.

    Args:
        hm: the model; it is left as it was.
        facts: the facts; a logit difference needs a `foil`, a `new` answer or `options`.
        sites: the senders: a kind (``"head"``, ``"attn"``, ``"mlp"``, ``"embed"``), or such sites.
        receivers: ``"logits"``, for the direct path; or sites that read the stream together: ``L9.head[3].q``
            (``.k .v``; ``L9.kv[1].v`` under grouped queries; ``L9.head[3]`` for all of these that it has of
            its own; ``L9.attn`` for all heads), ``L9.mlp``, ``L9.resid_pre`` (``_mid _post``).
        mlps: ``"freeze"`` the MLPs between sender and receivers, for the direct path; or ``"recompute"``
            them, so that what they make of the sender's change counts too.
        positions: replace the sender at ``"all"`` positions at once, at token ``"groups"``, or at ``"each"``.
        corrupt: another ``"subject"`` (`OtherSubject`), ``"noise"`` on the subject's embeddings (`Noise`), or
            facts whose prompts are run instead.
        direction: ``"noising"`` (corrupted senders into the clean run) or ``"denoising"``.
        metric: as for ``activation_patch``; one or several.
        normalized: divide by the mean difference between the two runs.
        seed: seed of the corruption, unless its value has one.
        batch_size: rows per captured run.
        budget: tokens per batch of patched rows; bounds the memory.
        progress: show a progress bar that counts senders, positions and rows.

    Returns:
        Scores over ``fact``, ``site`` (the senders), ``pos`` (not for ``"all"``) and ``metric`` (if there are
        several). Above 0 a path supports the answer; ``scores.change`` is the raw change.

    Raises:
        ScoresError: for an option that does not exist, a number that is not above zero, or no sites or
            receivers.
        SiteError: for a site that the model lacks, or that cannot send or receive.
        FactError: no fact finds another subject, or facts and prompts do not fit each other.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> direct = mu.path_patch(hm, facts[:4], "mlp", progress=False)
        >>> through = mu.path_patch(hm, facts[:4], "mlp", ["L2.head[0].v"], progress=False)
        >>> [float(score) for score in through.reduce().values[2:4]]
        [0.0, 0.0]

    Source: Wang et al. 2022, Interpretability in the Wild; Goldowsky-Dill et al. 2023, Localizing Model
    Behavior with Path Patching.
    """
    metrics = metrics_of(metric)
    positive(ScoresError, batch_size=batch_size, budget=1 if budget is None else budget)
    if direction not in ("noising", "denoising"):
        raise ScoresError(one_of("direction", direction, ["noising", "denoising"]))
    paths = Paths.of(hm, sites, receivers, mlps=mlps)
    pairs = pair(hm, facts, metrics, corrupt=corrupt, seed=seed, batch_size=batch_size)
    engine = Engine.of(hm, budget=budget)
    result = _swept(engine, paths, pairs, metrics, positions, direction, batch_size, progress)
    return scores_of(
        hm, result, list(paths.senders), pairs, metric=metric, positions=positions, direction=direction,
        normalized=normalized, title=_title(paths, direction),
    )  # fmt: skip


def _swept(
    engine: Engine,
    paths: Paths,
    pairs: Pairs,
    metrics: tuple[Metric, ...],
    positions: Positions,
    direction: Direction,
    batch_size: int,
    progress: bool,
) -> SweepResult:
    """Sweep over all parts of the facts, and add up what each gives."""
    names, places = paths.run_names(BlockFunctions.of(engine.hm)), places_of(pairs.answers, positions)
    tasks = patch_tasks(engine.hm, pairs, metrics, names, direction=direction, batch_size=batch_size)
    result = SweepResult.empty(int(pairs.answers.fact.max()) + 1, len(paths.senders), places, len(metrics))
    total = len(paths.senders) * places * len(pairs.answers) * pairs.samples
    with tqdm(total=total, desc="path patching", disable=not progress) as bar:
        for task in tasks:
            where = where_of(task.answers, positions, places=places)
            path_task = PathTask(task.run, task.source, task.rows[0], where, task.measure)
            values = path_sweep(engine, paths, path_task, bar=bar)
            baseline = engine.baseline(task.run, task.measure)
            result.noise = max(result.noise, _noise(engine, paths, path_task, values - baseline))
            result.add(task, values, baseline)
            result.blank(task, where)
    result.complete = bool(BlockFunctions.of(engine.hm).reason)
    return result


def _noise(
    engine: Engine, paths: Paths, path_task: PathTask, changes: Float[Tensor, "sender place row metric"]
) -> float:
    """In half precision, how far the strongest sender's change is from that of rows run one by one."""
    if engine.hm.dtype not in (torch.float16, torch.bfloat16):
        return 0.0
    strongest = int(changes.abs().flatten(1).amax(1).argmax())
    one = replace(paths, senders=paths.senders[strongest : strongest + 1])
    again = path_sweep(replace(engine, budget=1), one, path_task)
    again = again - engine.baseline(path_task.run, path_task.readout)
    return float((again[0] - changes[strongest]).abs().max())


def _title(paths: Paths, direction: Direction) -> str:
    shown = [str(site) for site in paths.receivers]
    listed = ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
    held = "frozen" if paths.mlps == "freeze" else "recomputed"
    return f"Path patching to {listed or 'the logits'}: {direction}, MLPs between {held}"
