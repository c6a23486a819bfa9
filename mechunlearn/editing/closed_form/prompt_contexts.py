"""Facts in contexts: the same prompt after different prefixes.

A key should represent the subject independently of the text before it. So every fact is run with its plain
prompt (the first context) and after a few prefixes; keys, values and losses are means over these contexts.
One more row per fact holds the *essence* prompt, ``"{subject} is a"``, whose next token should not change.
Rows are encoded with the target answer; activations are read at the last token of the subject.

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
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel

ESSENCE = "{} is a"
FIELDS = ("answer", "new", "foil")
Lengths = Sequence[tuple[int, int]]
"""Pairs of a number of prefixes and the number of tokens in each."""


@dataclass(frozen=True)
class Contexts:
    """Rows of several facts, each in ``each`` contexts and once with its essence prompt.

    ``batch`` holds the rows of one fact after another: the plain prompt, the prefixed ones, the essence.
    """

    batch: Batch
    each: int

    def __len__(self) -> int:
        return len(self.batch) // (self.each + 1)

    def parts(self, rows: int) -> Iterator[Contexts]:
        """Groups of whole facts with at most ``rows`` rows, or with one fact if its rows are more."""
        per_fact = self.each + 1
        step = max(1, rows // per_fact) * per_fact
        for start in range(0, len(self.batch), step):
            yield Contexts(self.batch.rows(slice(start, start + step)).trimmed(), self.each)

    def at_subject(
        self, bridge: Any, names: Sequence[str], *, batch_size: int
    ) -> dict[str, Float[Tensor, "fact context width"]]:
        """Activations at the last token of the subject by hook point, in float64 on the CPU."""
        batch = self.batch.rows(self.rows[:, :-1].flatten())
        positions = batch.subject_last[:, None]
        read = capture(bridge, batch.tokens, names, positions, mask=batch.mask, batch_size=batch_size)
        return {name: read[name][:, 0].double().view(len(self), self.each, -1) for name in names}

    @property
    def rows(self) -> Int[Tensor, "fact row"]:
        """The row numbers in ``batch``: a fact's contexts, and last its essence."""
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
    """Encode facts in their contexts, with their target answers.

    ``prefixes`` None samples ``lengths``. ``target`` is the name of a field (``"new"``), one text for all
    facts, or a text for each.

    Raises:
        FactError: a fact has no such answer, there are too many or too few answers, or the target is a
            field's name in another case, or not a text.
        ModelError: nothing can be sampled, as :func:`sample_prefixes` says.
    """
    if isinstance(prefixes, str):
        raise FactError(f"prefixes are given as a list: [{prefixes!r}]; not {prefixes!r}")
    texts = sample_prefixes(hm, lengths, seed=seed) if prefixes is None else tuple(prefixes)
    _require_room_in_front(hm, facts, texts)
    rows = []
    for fact in facts:
        essence = fact.replace(closing="").asking(fact.opening + ESSENCE.format(fact.subject))
        rows += [fact.asking(fact.prompt), *(fact.after(prefix) for prefix in texts), essence]
    each = len(texts) + 1
    return Contexts(encode(hm, rows, answer=_answers(facts, target, each + 1)), each)


def _require_room_in_front(hm: HookedModel, facts: Sequence[Fact], prefixes: Sequence[str]) -> None:
    """Refuse prefixes of prompts that a chat template has rendered: they would stand before the template."""
    bos = getattr(hm.tokenizer, "bos_token", None)
    rendered = [fact.prompt for fact in facts if bos and not fact.rendered and fact.prompt.startswith(bos)]
    if prefixes and rendered:
        raise FactError(
            f"the prompt {rendered[0][:60]!r} begins with {bos!r}, so prefixes would stand before its chat "
            "template; render the facts with facts.as_chat(hm), or give prefixes=[]"
        )


def forgotten(facts: Facts) -> Facts:
    """The forget set; FactError if these are no facts or it is empty."""
    if not isinstance(facts, Facts):
        raise FactError(f"the facts are a {type(facts).__name__}; give them as Facts, as in Facts([...])")
    facts.require("forget")
    return facts.forget


def sample_prefixes(hm: HookedModel, lengths: Lengths, *, seed: int) -> tuple[str, ...]:
    """Texts sampled from the model, ``lengths`` in tokens, each ended by a full stop; empty ones are dropped.

    Raises ModelError if the tokenizer has neither a BOS nor an EOS token to start from.
    """
    specials = (getattr(hm.tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos"))
    opening = next((number for number in specials if number is not None), None)
    if opening is None:
        raise ModelError(
            "prefixes cannot be sampled: the tokenizer has neither a BOS nor an EOS token to begin with; "
            "give prefixes=[...], or prefixes=[] for the plain prompt alone"
        )
    texts = []
    for number, (count, tokens) in enumerate(lengths):
        start = torch.full((count, 1), int(opening), dtype=torch.long)
        rows = hm.generate(
            start, max_new_tokens=tokens, do_sample=True, seed=seed + number, stop_at_eos=False
        )
        for row in rows:
            text = hm.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            texts.append(text.strip())
    return tuple(f"{text}." for text in texts if text)


def _answers(facts: Sequence[Fact], target: str | Sequence[str], rows: int) -> str | list[str]:
    """The target in the form that ``encode`` takes, for ``rows`` rows per fact."""
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
    """The name of the field if the target is one, else None."""
    field = target.strip().lower()
    if field not in FIELDS:
        return None
    if target != field:
        raise FactError(
            f"target is {target!r}, which may be the field {field!r} or a text; give {field!r} for what each "
            f"fact has there, or [{target!r}], one for each fact, for the text itself"
        )
    return field
