"""Facts in their contexts: the same question after different beginnings.

A key should stand for the subject whatever was said before it. So every fact is asked as it is and after
each of a few prefixes, and keys, values and losses are means over these contexts.

1. Prefixes are given, or sampled from the model itself with a seed. The plain prompt always comes first.
2. One more row per fact asks for the *essence* of its subject, ``"{subject} is a"``: what should not change.
3. Rows are encoded with the target answer behind them. Whatever is read of a fact is read at the last
   token of its subject.

Source: Meng et al. (2022), section 3.1 and appendix E.5 (prefixes, essence).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.errors import FactError, ModelError
from mechunlearn.models.activations import capture
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.encoding.encoder import encode, joined
from mechunlearn.models.hooked import HookedModel

ESSENCE = "{} is a"
FIELDS = ("answer", "new", "foil")
Lengths = Sequence[tuple[int, int]]
"""How many prefixes to sample, of how many tokens each."""


@dataclass(frozen=True)
class Contexts:
    """Rows of several facts, each in the same number of contexts and once asked for its essence.

    Args:
        batch: the rows, fact after fact: the plain prompt, the prefixed ones, the essence.
        each: contexts of a fact; its rows are one more.
    """

    batch: Batch
    each: int

    def __len__(self) -> int:
        return len(self.batch) // (self.each + 1)

    def parts(self, rows: int) -> Iterator[Contexts]:
        """The facts in groups of at most so many rows, or of one fact.

        Args:
            rows: how many.
        """
        wide = self.each + 1
        step = max(1, rows // wide) * wide
        for start in range(0, len(self.batch), step):
            yield Contexts(self.batch.rows(slice(start, start + step)).trimmed(), self.each)

    def at_subject(
        self, bridge: Any, names: Sequence[str], *, batch_size: int
    ) -> dict[str, Float[Tensor, "fact context width"]]:
        """Activations at the last token of the subject, in every context.

        Args:
            bridge: the TransformerBridge to run.
            names: hook points.
            batch_size: rows per forward pass.

        Returns:
            By name, in float64, on the CPU.
        """
        asked = self.rows[:, :-1].flatten()
        batch = self.batch.rows(asked)
        where = batch.subject_last[:, None]
        read = capture(bridge, batch.tokens, names, where, mask=batch.mask, batch_size=batch_size)
        return {name: read[name][:, 0].double().view(len(self), self.each, -1) for name in names}

    @property
    def rows(self) -> Int[Tensor, "fact row"]:
        """The numbers of the rows: a fact's contexts, and last its essence."""
        return torch.arange(len(self.batch), device=self.batch.tokens.device).view(len(self), -1)


def asked_in_contexts(
    hm: HookedModel,
    facts: Sequence[Fact],
    *,
    target: str | Sequence[str],
    prefixes: Sequence[str] | None,
    lengths: Lengths,
    seed: int,
) -> Contexts:
    """Encode facts in their contexts, with the answers they should get.

    Args:
        hm: the model.
        facts: what is asked.
        target: a field of the facts (``"new"``), one text for all, or a text for each.
        prefixes: what to say before the prompts; None to sample.
        lengths: what to sample.
        seed: of the sampling.

    Raises:
        FactError: a fact has no such answer, the answers are too many or too few, or the target is a field's
            name in other letters, or no text.
        ModelError: nothing can be sampled from.
    """
    if isinstance(prefixes, str):
        raise FactError(f"prefixes are given as a list: [{prefixes!r}]; not {prefixes!r}")
    before = sample_prefixes(hm, lengths, seed=seed) if prefixes is None else tuple(prefixes)
    rows = []
    for fact in facts:
        prompts = [fact.prompt, *(joined(prefix, fact.prompt) for prefix in before)]
        rows += [fact.asking(prompt) for prompt in (*prompts, ESSENCE.format(fact.subject))]
    each = len(before) + 1
    return Contexts(encode(hm, rows, answer=_answers(facts, target, each + 1)), each)


def forgotten(facts: Facts) -> Facts:
    """The facts to be rewritten.

    Args:
        facts: with a forget set.

    Raises:
        FactError: these are no facts, or there is nothing to forget.
    """
    if not isinstance(facts, Facts):
        raise FactError(f"the facts are a {type(facts).__name__}; give them as Facts, as in Facts([...])")
    facts.require("forget")
    return facts.forget


def sample_prefixes(hm: HookedModel, lengths: Lengths, *, seed: int) -> tuple[str, ...]:
    """Beginnings in the model's own words, each ended by a full stop.

    Args:
        hm: the model.
        lengths: how many of how many tokens.
        seed: of the sampling.

    Raises:
        ModelError: the tokenizer has no token to begin with.

    Example:
        >>> len(sample_prefixes(mu.world.model(), [(2, 2), (1, 4)], seed=0))
        3
    """
    known = (getattr(hm.tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos"))
    opening = next((number for number in known if number is not None), None)
    if opening is None:
        raise ModelError(
            "prefixes cannot be sampled: the tokenizer has neither a BOS nor an EOS token to begin with; "
            "give prefixes=[...], or prefixes=[] for the plain prompt alone"
        )
    found = []
    for number, (count, tokens) in enumerate(lengths):
        start = torch.full((count, 1), int(opening), dtype=torch.long)
        rows = hm.generate(
            start, max_new_tokens=tokens, do_sample=True, seed=seed + number, stop_at_eos=False
        )
        for row in rows:
            text = hm.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            found.append(text.strip())
    return tuple(f"{text}." for text in found if text)


def _answers(facts: Sequence[Fact], target: str | Sequence[str], rows: int) -> str | list[str]:
    """The target as ``encode`` takes it, for so many rows a fact."""
    if isinstance(target, str):
        return _field(target) or [target] * (len(facts) * rows)
    if not isinstance(target, Sequence) or not all(isinstance(text, str) for text in target):
        raise FactError(
            f"target is {target!r}; give a field's name such as 'new', one text for all facts, or a list "
            "with one for each"
        )
    if len(target) != len(facts):
        raise FactError(f"there are {len(target)} targets for {len(facts)} facts; give one for each")
    return [text for text in target for _ in range(rows)]


def _field(target: str) -> str | None:
    """The field of a fact that a target names, if it names one."""
    field = target.strip().lower()
    if field not in FIELDS:
        return None
    if target != field:
        raise FactError(
            f"target is {target!r}, which may be the field {field!r} or a text; give {field!r} for what each "
            f"fact has there, or [{target!r}], one for each fact, for the text itself"
        )
    return field
