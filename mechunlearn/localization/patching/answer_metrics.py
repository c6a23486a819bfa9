"""Metrics of the facts' answers, for runs in which something is changed.

1. For every fact some words are scored, its answer among them. Words are scored whole, so all their tokens
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
from mechunlearn.localization.engine.cached_run import CachedRun
from mechunlearn.localization.engine.readout import FinalStates
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
    """Facts with the words to score: one row per fact and fed tokens.

    The last token of every word is only predicted, and not fed. ``ids`` are the tokens of each row's words,
    -100 where there are fewer; they are predicted at ``positions``, the first of which is the prompt's last
    token. ``weight`` is that of each word's log-probability in the fact's logit difference.
    """

    batch: Batch
    fact: Int[Tensor, "row"]
    ids: Int[Tensor, "row word answer"]
    positions: Int[Tensor, "row answer"]
    weight: Float[Tensor, "row word"]
    is_answer: Bool[Tensor, "row word"]

    def __len__(self) -> int:
        return len(self.fact)

    def rows(self, index: slice | Int[Tensor, "chosen"]) -> AnswerRows:
        """Some of the rows, as often as they are named."""
        # The numbers of facts stay on the CPU, where results are added up.
        fact = self.fact[index.cpu() if isinstance(index, Tensor) else index]
        columns = (c[index] for c in (self.ids, self.positions, self.weight, self.is_answer))
        return AnswerRows(self.batch.rows(index), fact, *columns)

    def parts(self, size: int) -> Iterator[tuple[slice, AnswerRows]]:
        """Split the rows into parts without columns of padding, each with its slice of the rows."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            part = self.rows(rows)
            yield rows, replace(part, batch=part.batch.trimmed())

    @cached_property
    def cancels(self) -> bool:
        """Whether the normaliser cancels in every row: one position, weights that sum to 0."""
        return self.positions.shape[1] == 1 and bool((self.weight.sum(1).abs() < 1e-9).all())

    def difference(self, logits: Float[Tensor, "row answer d_vocab"]) -> Float[Tensor, "row"]:
        """The logit difference in every row, differentiable; that of a fact is the sum over its rows."""
        words = logprobs(logits, self.ids, normalised=not self.cancels)
        return (words * self.weight.to(words)).sum(1)


def answer_rows(
    hm: HasTokenizer,
    facts: Sequence[Fact],
    words: Sequence[Mapping[str, float]],
    *,
    prompts: Sequence[Fact] | None = None,
) -> AnswerRows:
    """Lay out the rows in which words are scored; ``words`` holds the weight of each, fact by fact.

    A fact's answer is one of its words. ``prompts`` are facts whose prompts are fed instead, token by token
    as long as their own, for corrupted runs.
    """
    flat = [(i, word, weight) for i, each in enumerate(words) for word, weight in each.items()]
    fed = facts if prompts is None else prompts
    encoded = encode(hm, [fed[i] for i, _, _ in flat], answer=[word for _, word, _ in flat])
    clean = encode(hm, [facts[i] for i, _, _ in flat], answer=[word for _, word, _ in flat])
    positions, ids = encoded.answer_positions, encoded.answer_ids
    last = positions[:, -1]
    # Rows are shared by what the facts' own prompts feed, so that corrupted rows are the same ones.
    keys = [(i, tuple(clean.tokens[r, : int(last[r]) + 1].tolist())) for r, (i, _, _) in enumerate(flat)]
    grouped: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for r, key in enumerate(keys):
        grouped.setdefault(key, []).append(r)
    groups, width = list(grouped.values()), max(map(len, grouped.values()))
    table = torch.tensor(
        [group + [-1] * (width - len(group)) for group in groups], device=encoded.tokens.device
    )
    first = table[:, 0]
    # Float64 is not to be had on every device, and weights such as -1/2 need no more than float32 there.
    exact = torch.float64 if table.device.type in ("cpu", "cuda") else torch.float32
    weight = torch.tensor([w for _, _, w in flat], dtype=exact, device=table.device)
    is_answer = torch.tensor([word == facts[i].answer for i, word, _ in flat], device=table.device)
    exists = table >= 0
    return AnswerRows(
        _fed(encoded.rows(first), last[first]),
        torch.tensor([flat[group[0]][0] for group in groups]),
        ids[table.clamp(min=0)].masked_fill(~exists[..., None], IGNORED),
        positions[first],
        weight[table.clamp(min=0)] * exists,
        is_answer[table.clamp(min=0)] & exists,
    )


def _fed(batch: Batch, last: Int[Tensor, "row"]) -> Batch:
    """The rows without what follows their last read position."""
    position = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    return replace(batch, mask=batch.mask * (position <= last[:, None])).trimmed()


@dataclass(frozen=True, eq=False)
class Measure:
    """The metrics of some rows, as the engine computes them.

    ``clean`` holds log-probabilities after the clean prompts, for ``"kl"``. ``numbers`` are the facts'
    numbers that metrics of the user get; None for their indices among the rows.
    """

    answers: AnswerRows
    metrics: tuple[Metric, ...]
    clean: Float[Tensor, "row d_vocab"] | None = None
    numbers: tuple[int, ...] | None = None

    @property
    def positions(self) -> Int[Tensor, "row answer"]:
        """The positions whose logits are needed."""
        return self.answers.positions

    @property
    def width(self) -> int:
        """The number of metrics."""
        return len(self.metrics)

    @property
    def all_logits(self) -> bool:
        """Whether all logits are needed."""
        return not (self.answers.cancels and all(metric == "logit_diff" for metric in self.metrics))

    def __call__(self, final: FinalStates, rows: Int[Tensor, "read"]) -> Float[Tensor, "read metric"]:
        """Compute the metrics of rows from their final states."""
        columns = [self._one(metric, final, rows).double() for metric in self.metrics]
        return torch.stack(columns, dim=1)

    def _one(self, metric: Metric, final: FinalStates, rows: Int[Tensor, "read"]) -> Float[Tensor, "read"]:
        ids, weight = self.answers.ids[rows], self.answers.weight[rows]
        is_answer = self.answers.is_answer[rows]
        if metric == "logit_diff":
            words = logprobs(final.logits, ids) if self.all_logits else _wide(final.columns(ids)[..., 0])
            return (words * weight.to(words)).sum(1)
        if metric in ("logprob", "probability"):
            answer = (logprobs(final.logits, ids) * is_answer).sum(1)
            return answer if metric == "logprob" else answer.exp() * is_answer.any(1)
        last = final.logits[:, 0]
        if callable(metric):
            values = self._custom(metric, last, rows)
        else:
            assert self.clean is not None
            values = kl(self.clean[rows], last)
        # A fact has as many rows as its words need; it is counted in the row of its own answer.
        return torch.where(is_answer.any(1), values, 0.0)

    def _custom(
        self, metric: Custom, last: Float[Tensor, "read d_vocab"], rows: Int[Tensor, "read"]
    ) -> Float[Tensor, "read"]:
        facts = self.answers.fact[rows.cpu()]
        if self.numbers is not None:
            facts = torch.tensor(self.numbers)[facts]
        values = metric(last, facts.to(rows.device))
        if not isinstance(values, Tensor) or values.shape != rows.shape:
            actual = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ScoresError(
                f"the metric {name_of(metric)!r} gave {actual} for {len(rows)} rows of logits; it must give "
                "one number per row, as lambda logits, facts: logits[:, 7] does"
            )
        return values

    def against(self, hm: HookedModel, run: CachedRun) -> Measure:
        """Add the distributions of a clean run, which ``"kl"`` compares with."""
        if "kl" not in self.metrics:
            return self
        states = run.resid[-1].gather(1, self.positions[:, :1, None].expand(-1, 1, run.resid[-1].shape[-1]))
        with torch.no_grad():
            return replace(self, clean=FinalStates(hm, states).logits[:, 0].log_softmax(-1))


def logprobs(
    logits: Float[Tensor, "read answer d_vocab"],
    ids: Int[Tensor, "read word answer"],
    *,
    normalised: bool = True,
) -> Float[Tensor, "read word"]:
    """The log-probability of every word, from the logits where its tokens are predicted.

    In ``ids``, -100 fills up words with fewer tokens. ``normalised=False`` leaves out the normaliser, which
    cancels in a difference of words of one token.
    """
    wide = _wide(logits).log_softmax(-1) if normalised else _wide(logits)
    tokens = wide.gather(2, ids.clamp(min=0).transpose(1, 2)).transpose(1, 2)
    words: Tensor = tokens.masked_fill(ids < 0, 0.0).sum(-1)
    return words


def _wide(logits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def metrics_of(metric: Metric | Sequence[Metric]) -> tuple[Metric, ...]:
    """Make one metric a tuple of one; ScoresError for an unknown name, for none, or for a name twice."""
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
    """The name of a metric in labels."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
