"""What an answer is compared with, and the first tokens of both.

1. An answer is compared with its foil; without a foil with the new answer; without that with the mean of the
   fact's other options.
2. A method that reads a single position, such as a lens, scores only the first token of a word. Where words
   have several tokens, the result says so in its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechunlearn.core.facts.fact import Fact
from mechunlearn.errors import FactError
from mechunlearn.models.encoding.batch import IGNORED
from mechunlearn.models.encoding.encoder import HasTokenizer, encode


@dataclass(frozen=True)
class FirstTokens:
    """The first tokens of every fact's words; facts with fewer words are filled up with weights of 0.

    ``single`` is True if every word is one token.
    """

    ids: Int[Tensor, "fact word"]
    weight: Float[Tensor, "fact word"]
    single: bool

    @property
    def note(self) -> str:
        """What the name of a metric adds."""
        return "" if self.single else " (first token)"


def contrast(fact: Fact) -> dict[str, float]:
    """The weight of each word in the fact's logit difference; the weights sum to 0.

    FactError is raised if the fact has nothing to compare its answer with.

    Example:
        >>> contrast(Fact("Bo plays", "Bo", "golf", options=("golf", "judo", "polo")))
        {'golf': 1.0, 'judo': -0.5, 'polo': -0.5}
    """
    wrong = [word for word in (fact.foil, fact.new) if word is not None][:1]
    wrong = wrong or [option for option in fact.options if option.strip() != fact.answer.strip()]
    if not wrong:
        raise FactError(
            f"the fact {fact.prompt!r} has nothing to compare its answer {fact.answer!r} with; give it "
            "`foil=`, `new=` or `options=`"
        )
    return {fact.answer: 1.0} | {word: -1.0 / len(wrong) for word in wrong}


def first_tokens(
    hm: HasTokenizer, facts: Sequence[Fact], words: Sequence[Mapping[str, float]]
) -> FirstTokens:
    """Find the first token of every word, as the tokenizer cuts it after the fact's prompt.

    ``words`` holds the weight of each word, fact by fact. FactError is raised if words that are compared
    begin with the same token, or if a word changes how the prompt before it is cut into tokens.
    """
    prompts = encode(hm, facts, answer=None)
    flat = [(i, word, weight) for i, each in enumerate(words) for word, weight in each.items()]
    answers = encode(hm, [facts[i] for i, _, _ in flat], answer=[word for _, word, _ in flat])
    shape = (len(facts), max(map(len, words)))
    ids, weight = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.float64)
    column, first = [0] * len(facts), answers.answer_ids[:, 0]
    for row, (i, word, share) in enumerate(flat):
        size = int(prompts.lengths[i])
        same = torch.equal(answers.tokens[row, :size], prompts.tokens[i, :size])
        if not same or int(answers.end[row]) != int(prompts.end[i]):
            raise FactError(
                f"the tokenizer cuts the prompt {facts[i].prompt!r} differently before {word!r} than before "
                f"{facts[i].answer!r}, so no one position predicts both; end the prompt with a whole word"
            )
        ids[i, column[i]], weight[i, column[i]] = first[row], share
        column[i] += 1
    _require_apart(facts, words, ids, weight)
    return FirstTokens(ids, weight, single=bool(((answers.labels != IGNORED).sum(1) == 1).all()))


def _require_apart(
    facts: Sequence[Fact],
    words: Sequence[Mapping[str, float]],
    ids: Int[Tensor, "fact word"],
    weight: Float[Tensor, "fact word"],
) -> None:
    """Refuse a difference in which every token's weights cancel, so that it is 0 for any logits."""
    same = (ids[:, :, None] == ids[:, None]).to(weight)
    cancels = (torch.einsum("fwv,fv->fw", same, weight).abs() < 1e-9).all(1)
    if cancels.any():
        i = int(cancels.int().argmax())
        raise FactError(
            f"{' and '.join(map(repr, words[i]))} begin with the same token after {facts[i].prompt!r}, and a "
            "lens reads one token; give another `foil=`, or use mu.attribution, which scores whole words"
        )
