"""What is measured of facts when something in their runs is changed.

1. For every fact some words are asked for, its answer among them. Words are scored whole, so all their tokens
   but the last are fed; words that feed the same tokens share a row.
2. A metric is a number per row; a fact's value is the sum over its rows:

   - ``"logit_diff"``: the weighted sum of the words' log-probabilities, the answer's against the
     others'. The weights sum to zero, so for words of one token it is the difference of their logits.
   - ``"logprob"`` and ``"probability"`` of the whole answer.
   - ``"kl"``: the divergence of the next-token distribution from that of the clean run, in nats.
   - a function of the logits at the last prompt token ``[row d_vocab]`` and of the facts' numbers ``[row]``.
3. Only what a metric needs is computed: a logit difference of single tokens reads a few columns of the
   unembedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.metrics import kl
from mechunlearn.errors import ScoresError, one_of
from mechunlearn.localization.answer_tokens import contrast
from mechunlearn.localization.engine.cached_run import Run
from mechunlearn.localization.engine.readout import Final
from mechunlearn.models.encoding.batch import IGNORED, Batch
from mechunlearn.models.encoding.encoder import HasTokenizer, encode
from mechunlearn.models.hooked import HookedModel

Name = Literal["logit_diff", "logprob", "probability", "kl"]
Custom = Callable[[Tensor, Tensor], Tensor]
Metric = Name | Custom
NAMES: tuple[Name, ...] = ("logit_diff", "logprob", "probability", "kl")
UNITS: Mapping[str, str] = {
    "logit_diff": "logits", "logprob": "nats", "probability": "probability", "kl": "nats",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class AnswerRows:
    """Facts with the words asked for: one row per fact and fed tokens.

    Args:
        batch: what is fed; the last token of every word is only asked for.
        fact: the fact of each row.
        ids: the tokens of each row's words, -100 where there are fewer.
        positions: where they are predicted; the first is the prompt's last token.
        weight: what each word's log-probability counts in the fact's logit difference.
        own: which word is the fact's own answer.
    """

    batch: Batch
    fact: Int[Tensor, "row"]
    ids: Int[Tensor, "row word answer"]
    positions: Int[Tensor, "row answer"]
    weight: Float[Tensor, "row word"]
    own: Bool[Tensor, "row word"]

    def __len__(self) -> int:
        return len(self.fact)

    def rows(self, index: slice | Int[Tensor, "kept"]) -> AnswerRows:
        """Some of the rows, as often as they are named."""
        # Numbers of facts stay on the CPU, where results are added up.
        fact = self.fact[index.cpu() if isinstance(index, Tensor) else index]
        columns = (c[index] for c in (self.ids, self.positions, self.weight, self.own))
        return AnswerRows(self.batch.rows(index), fact, *columns)

    def parts(self, size: int) -> Iterator[tuple[slice, AnswerRows]]:
        """The rows in parts, without columns of padding alone, each with its place."""
        for start in range(0, len(self), size):
            place = slice(start, min(start + size, len(self)))
            some = self.rows(place)
            yield place, replace(some, batch=some.batch.trimmed())

    @cached_property
    def cancels(self) -> bool:
        """Whether the normaliser cancels in every row: one position is read, by words that weigh nothing."""
        return self.positions.shape[1] == 1 and bool((self.weight.sum(1).abs() < 1e-9).all())

    def difference(self, logits: Float[Tensor, "row answer d_vocab"]) -> Float[Tensor, "row"]:
        """The logit difference in every row, differentiable; that of a fact is the sum over its rows.

        Args:
            logits: at the positions that are read.
        """
        words = logprobs(logits, self.ids, normalised=not self.cancels)
        return (words * self.weight.to(words)).sum(1)


def ask(
    hm: HasTokenizer,
    facts: Sequence[Fact],
    words: Sequence[Mapping[str, float]],
    *,
    prompts: Sequence[Fact] | None = None,
) -> AnswerRows:
    """Lay out the rows in which words are asked for.

    Args:
        hm: gives the tokenizer and the device.
        facts: whose answers count as their own.
        words: for every fact, what each word counts; its own answer is one of them.
        prompts: facts whose prompts are fed instead, token by token as long as their own; for corrupted runs.

    Example:
        >>> hm, facts = mu.world.model(), mu.world.facts().forget
        >>> asked = ask(hm, facts[:2], [{fact.answer: 1.0} for fact in facts[:2]])
        >>> asked.fact.tolist()
        [0, 1]
    """
    flat = [(i, word, weight) for i, each in enumerate(words) for word, weight in each.items()]
    shown = facts if prompts is None else prompts
    spoken = encode(hm, [shown[i] for i, _, _ in flat], answer=[word for _, word, _ in flat])
    own = encode(hm, [facts[i] for i, _, _ in flat], answer=[word for _, word, _ in flat])
    positions, ids = spoken.answer_positions, spoken.answer_ids
    last = positions[:, -1]
    # Rows are shared by what the facts' own prompts feed, so that corrupted rows are the same ones.
    keys = [(i, tuple(own.tokens[r, : int(last[r]) + 1].tolist())) for r, (i, _, _) in enumerate(flat)]
    grouped: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for r, key in enumerate(keys):
        grouped.setdefault(key, []).append(r)
    groups, width = list(grouped.values()), max(map(len, grouped.values()))
    table = torch.tensor(
        [group + [-1] * (width - len(group)) for group in groups], device=spoken.tokens.device
    )
    heads = table[:, 0]
    # Float64 is not to be had on every device, and weights such as -1/2 need no more than float32 there.
    exact = torch.float64 if table.device.type in ("cpu", "cuda") else torch.float32
    weight = torch.tensor([w for _, _, w in flat], dtype=exact, device=table.device)
    mine = torch.tensor([word == facts[i].answer for i, word, _ in flat], device=table.device)
    there = table >= 0
    return AnswerRows(
        _fed(spoken.rows(heads), last[heads]),
        torch.tensor([flat[group[0]][0] for group in groups]),
        ids[table.clamp(min=0)].masked_fill(~there[..., None], IGNORED),
        positions[heads],
        weight[table.clamp(min=0)] * there,
        mine[table.clamp(min=0)] & there,
    )


def _fed(batch: Batch, last: Int[Tensor, "row"]) -> Batch:
    """The rows without what follows their last read position."""
    position = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    return replace(batch, mask=batch.mask * (position <= last[:, None])).trimmed()


@dataclass(frozen=True, eq=False)
class Measure:
    """Metrics of some rows, as the engine reads them.

    Args:
        asked: the rows.
        metrics: what to measure.
        clean: log-probabilities after the clean prompts, for ``"kl"``.
        numbers: what functions are told as each fact's number; None for its place among those asked.
    """

    asked: AnswerRows
    metrics: tuple[Metric, ...]
    clean: Float[Tensor, "row d_vocab"] | None = None
    numbers: tuple[int, ...] | None = None

    @property
    def positions(self) -> Int[Tensor, "row answer"]:
        """Where rows are read."""
        return self.asked.positions

    @property
    def width(self) -> int:
        """How many metrics there are."""
        return len(self.metrics)

    @property
    def whole(self) -> bool:
        """Whether all logits are needed."""
        return not (self.asked.cancels and all(metric == "logit_diff" for metric in self.metrics))

    def __call__(self, final: Final, rows: Int[Tensor, "read"]) -> Float[Tensor, "read metric"]:
        """Measure rows whose final states are these."""
        columns = [self._one(metric, final, rows).double() for metric in self.metrics]
        return torch.stack(columns, dim=1)

    def _one(self, metric: Metric, final: Final, rows: Int[Tensor, "read"]) -> Float[Tensor, "read"]:
        ids, own, weight = self.asked.ids[rows], self.asked.own[rows], self.asked.weight[rows]
        if metric == "logit_diff":
            words = logprobs(final.logits, ids) if self.whole else _wide(final.columns(ids)[..., 0])
            return (words * weight.to(words)).sum(1)
        if metric in ("logprob", "probability"):
            answer = (logprobs(final.logits, ids) * own).sum(1)
            return answer if metric == "logprob" else answer.exp() * own.any(1)
        last = final.logits[:, 0]
        if callable(metric):
            found = self._custom(metric, last, rows)
        else:
            assert self.clean is not None
            found = kl(self.clean[rows], last)
        return torch.where(own.any(1), found, 0.0)

    def _custom(
        self, metric: Custom, last: Float[Tensor, "read d_vocab"], rows: Int[Tensor, "read"]
    ) -> Float[Tensor, "read"]:
        facts = self.asked.fact[rows.cpu()]
        if self.numbers is not None:
            facts = torch.tensor(self.numbers)[facts]
        found = metric(last, facts.to(rows.device))
        if not isinstance(found, Tensor) or found.shape != rows.shape:
            given = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ScoresError(
                f"the metric {name_of(metric)!r} gave {given} for {len(rows)} rows of logits; it must give "
                "one number per row, as lambda logits, facts: logits[:, 7] does"
            )
        return found

    def against(self, hm: HookedModel, run: Run) -> Measure:
        """The same, with the distributions of a clean run for ``"kl"``."""
        if "kl" not in self.metrics:
            return self
        states = run.resid[-1].gather(1, self.positions[:, :1, None].expand(-1, 1, run.resid[-1].shape[-1]))
        with torch.no_grad():
            return replace(self, clean=Final(hm, states).logits[:, 0].log_softmax(-1))


def logprobs(
    logits: Float[Tensor, "read answer d_vocab"],
    ids: Int[Tensor, "read word answer"],
    *,
    normalised: bool = True,
) -> Float[Tensor, "read word"]:
    """The log-probability of every word, from the logits where its tokens are predicted.

    Args:
        logits: at those positions.
        ids: the words' tokens; -100 where there are fewer.
        normalised: False leaves the normaliser out, which cancels in a difference of words of one token.
    """
    wide = _wide(logits).log_softmax(-1) if normalised else _wide(logits)
    picked = wide.gather(2, ids.clamp(min=0).transpose(1, 2)).transpose(1, 2)
    found: Tensor = picked.masked_fill(ids < 0, 0.0).sum(-1)
    return found


def _wide(logits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def metrics_of(metric: Metric | Sequence[Metric]) -> tuple[Metric, ...]:
    """Check metrics, and make one a tuple of one.

    Raises:
        ScoresError: for an unknown name, for none, or for the same name twice.
    """
    several = (metric,) if isinstance(metric, str) or callable(metric) else tuple(metric)
    for each in several:
        if not callable(each) and each not in NAMES:
            raise ScoresError(one_of("metric", each, NAMES) + ", or a function of logits and facts")
    if not several:
        raise ScoresError(f"metric names one or more of {NAMES}; not none")
    names = [name_of(each) for each in several]
    if len(set(names)) < len(names):
        raise ScoresError(f"metrics need names of their own; not {names} (def gives a function its name)")
    return several


def words_of(facts: Sequence[Fact], metrics: Sequence[Metric]) -> list[dict[str, float]]:
    """The words each fact's metrics need: its contrast for a logit difference, else its answer."""
    if "logit_diff" in metrics:
        return [contrast(fact) for fact in facts]
    return [{fact.answer: 1.0} for fact in facts]


def name_of(metric: Metric) -> str:
    """How a metric is called in labels."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
