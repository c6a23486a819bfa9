"""Clean and corrupted runs of the same facts, row by row.

1. A fact's prompt is corrupted by another subject of equally many tokens, by another prompt of the same
   length, or by seeded noise on the embeddings of the subject.
2. Noise is drawn per fact in the order of the facts, in float32 on the CPU, and scaled to the spread of all
   subjects' embeddings. So it depends neither on batch size nor on device or precision. Every sample of it
   is one more corrupted row beside the same clean row.
3. Both runs are captured for some rows at a time, which bounds the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.kinds import Mention
from mechunlearn.errors import FactError
from mechunlearn.localization.engine.cached_run import CachedRun, cached_run
from mechunlearn.localization.patching.answer_metrics import AnswerRows, Metric, answer_rows, words_of
from mechunlearn.localization.patching.corruption import PAIRED, Corrupt, Noise, OtherSubject, corruption_of
from mechunlearn.localization.subject_swaps import mention_note, swap_subjects
from mechunlearn.models.activations import activations
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True, eq=False)
class CleanCorruptRuns:
    """A clean and a corrupted run; the corrupted run has one row per clean row and sample of noise.

    ``rows`` is the clean row of every corrupted row, and ``answers`` its words to score.
    """

    clean: CachedRun
    corrupt: CachedRun
    answers: AnswerRows
    rows: Int[Tensor, "row"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Facts, each beside what corrupts it: another prompt, or else noise on its subject.

    ``index`` is each fact's index among those that were passed. ``note`` says how many have another subject,
    such as ``"31 of 32 facts"``, and which mentions are corrupted where a prompt names its subject several
    times; it is empty if there is nothing to say.
    """

    answers: AnswerRows
    corrupted: Batch | None
    draws: tuple[Float[Tensor, "sample _ d_model"], ...] | None
    index: tuple[int, ...]
    note: str = ""
    mention: Mention = "all"

    @classmethod
    def at_end(
        cls,
        clean: Int[Tensor, "row pos"],
        corrupt: Int[Tensor, "row pos"],
        answer: Int[Tensor, "row"],
        foil: Int[Tensor, "row"],
    ) -> Pairs:
        """Pair token ids without padding; the metric compares two tokens at the last position.

        Example:
            >>> ids = torch.zeros(2, 4, dtype=torch.long)
            >>> Pairs.at_end(ids, ids + 1, ids[:, 0], ids[:, 0] + 1).answers.positions.tolist()
            [[3], [3]]
        """
        count, weight = len(clean), torch.tensor([1.0, -1.0], device=clean.device)
        answers = AnswerRows(
            Batch.of_tokens(clean),
            torch.arange(count),
            torch.stack([answer, foil], dim=1)[..., None],
            torch.full_like(clean[:, :1], clean.shape[1] - 1),
            weight.repeat(count, 1),
            (weight > 0).repeat(count, 1),
        )
        return cls(answers, Batch.of_tokens(corrupt), None, tuple(range(count)))

    @property
    def samples(self) -> int:
        """Corrupted rows per clean row."""
        return 1 if self.draws is None else len(self.draws[0])

    @property
    def differs(self) -> Bool[Tensor, "row pos"]:
        """True from the first token on in which the two prompts differ; before it their runs are equal."""
        batch = self.answers.batch
        changed = (
            batch.mentioned(self.mention) if self.corrupted is None else batch.tokens != self.corrupted.tokens
        )
        return (changed.cumsum(1) > 0) & batch.mask.bool()

    def parts(self, size: int) -> Iterator[tuple[slice, Pairs]]:
        """Split the rows into parts of a size, samples counted, each with its slice of the rows."""
        for rows, answers in self.answers.parts(max(1, size // self.samples)):
            corrupted = None if self.corrupted is None else self.corrupted.rows(rows)
            width = answers.batch.tokens.shape[1]
            yield rows, replace(self, answers=answers, corrupted=corrupted and _narrow(corrupted, width))

    def runs(self, hm: HookedModel, keep: Iterable[str] = ()) -> CleanCorruptRuns:
        """Capture both runs, keeping the hook points named."""
        names = list(keep)
        clean = cached_run(hm, self.answers.batch, [*names, "hook_embed"])
        rows = torch.arange(len(self.answers), device=hm.device).repeat_interleave(self.samples)
        answers = self.answers.rows(rows)
        if self.corrupted is not None:
            return CleanCorruptRuns(clean, cached_run(hm, self.corrupted, names), answers, rows)
        embedded = clean.activations["hook_embed"][rows]
        noised = self.answers.batch.mentioned(self.mention)
        for row, fact in enumerate(self.answers.fact.tolist()):
            samples = slice(row * self.samples, (row + 1) * self.samples)
            embedded[samples, noised[row]] += (self.draws or ())[fact].to(embedded)
        return CleanCorruptRuns(clean, cached_run(hm, answers.batch, names, embedded=embedded), answers, rows)


def pair(
    hm: HookedModel,
    facts: Sequence[Fact],
    metrics: Sequence[Metric],
    *,
    corrupt: Corrupt,
    seed: int = 0,
    batch_size: int = 64,
) -> Pairs:
    """Set facts beside what corrupts them; `metrics` decide which words are scored.

    FactError is raised if no fact finds another subject, or a prompt does not fit its fact's; ScoresError for
    an ablation, which has no second run.
    """
    corruption = corruption_of(corrupt, PAIRED, seed=seed)
    if isinstance(corruption, Noise):
        answers = answer_rows(hm, facts, words_of(facts, metrics))
        draws, which = _draws(hm, facts, corruption, batch_size), corruption.mention
        return Pairs(answers, None, draws, tuple(range(len(facts))), mention_note(facts, which), which)
    if isinstance(corruption, OtherSubject):
        which = corruption.mention
        swaps = swap_subjects(hm, facts, pool=corruption.pool, mention=which, seed=corruption.seed or 0)
        clean, corrupted, index, note = swaps.facts, swaps.swapped, swaps.index, swaps.note
    else:
        clean, corrupted, index, note = tuple(facts), corruption.facts, tuple(range(len(facts))), ""
        _require_alike(hm, clean, corrupted)
    words = words_of(clean, metrics)
    answers, prompts = answer_rows(hm, clean, words), answer_rows(hm, clean, words, prompts=corrupted)
    return Pairs(answers, prompts.batch, None, index, note)


def _draws(
    hm: HookedModel, facts: Sequence[Fact], noise: Noise, batch_size: int
) -> tuple[Float[Tensor, "sample _ d_model"], ...]:
    """Noise for the subject of every fact, scaled to the spread of all subjects' embeddings."""
    batch, subjects = encode(hm, facts, answer=None), []
    for start in range(0, len(batch), batch_size):
        part = batch.rows(slice(start, start + batch_size)).trimmed()
        embedded = activations(hm, part, ["hook_embed"])["hook_embed"]
        subjects.append(embedded[part.mentioned(noise.mention)].cpu().double())
    std, width = float(noise.scale) * torch.cat(subjects).std(), subjects[0].shape[-1]
    # Float32 on the CPU gives the same noise on every device and in every precision of the model.
    generator = torch.Generator().manual_seed(noise.seed or 0)
    shapes = [(noise.samples, length, width) for length in batch.mentioned(noise.mention).sum(1).tolist()]
    return tuple(std * torch.randn(*shape, generator=generator).double() for shape in shapes)


def _require_alike(hm: HookedModel, facts: Sequence[Fact], prompts: Sequence[Fact]) -> None:
    if len(prompts) != len(facts):
        raise FactError(f"corrupt gives {len(prompts)} prompts for {len(facts)} facts; give one for each")
    ends = encode(hm, facts, answer=None).end.tolist(), encode(hm, prompts, answer=None).end.tolist()
    for fact, prompt, end, prompt_end in zip(facts, prompts, *ends, strict=True):
        if end != prompt_end:
            raise FactError(
                f"the corrupted prompt {prompt.prompt!r} has {prompt_end + 1} tokens and {fact.prompt!r} has "
                f"{end + 1}; a patch needs them position by position, so give prompts of equal length"
            )


def _narrow(batch: Batch, width: int) -> Batch:
    """Cut columns that the clean rows do not have."""
    columns = {
        name: getattr(batch, name)[:, :width] for name in ("tokens", "mask", "subject", "mention", "labels")
    }
    return replace(batch, **columns)
