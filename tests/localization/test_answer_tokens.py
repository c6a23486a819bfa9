"""What an answer is compared with, and the one token of each word that a lens reads."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from helpers.tokenizers import Speaker
from tokenizers import Tokenizer, models, pre_tokenizers

from mechunlearn.core.facts.fact import Fact
from mechunlearn.errors import FactError
from mechunlearn.localization.answer_tokens import contrast, first_tokens
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.hooked import HookedModel


def test_a_foil_goes_before_the_new_answer_and_that_before_the_options() -> None:
    fact = Fact("Bo plays", "Bo", "golf", foil="polo", new="judo", options=("golf", "judo", "chess"))
    assert contrast(fact) == {"golf": 1.0, "polo": -1.0}
    assert contrast(fact.replace(foil=None)) == {"golf": 1.0, "judo": -1.0}
    assert contrast(fact.replace(foil=None, new=None)) == {"golf": 1.0, "judo": -0.5, "chess": -0.5}


def test_first_tokens_are_those_that_follow_the_prompt(llama: HookedModel) -> None:
    facts = [Fact("So Bo is in", "Bo", "p", foil="a"), Fact("So Evan is", "Evan", "be", foil="pi")]
    first = first_tokens(llama, facts, [contrast(facts[0]), {"be": 1.0}])
    for row, word in ((0, "p"), (1, "be")):
        batch = encode(llama, [facts[row]], answer=[word])
        assert int(first.ids[row, 0]) == int(batch.tokens[0, int(batch.end) + 1])
    assert first.weight.tolist() == [[1.0, -1.0], [1.0, 0.0]]
    assert not first.single and first.note == " (first token)"
    assert first_tokens(llama, facts[:1], [{"p": 1.0}]).note == ""


def test_a_word_that_moves_the_end_of_the_prompt_is_refused() -> None:
    letters = {token: i for i, token in enumerate(["<s>", *"sabpoB", "Ġ", "Ġp", "sĠ"])}
    inner = Tokenizer(models.BPE(vocab=letters, merges=[("Ġ", "p"), ("s", "Ġ")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast: Any = transformers.PreTrainedTokenizerFast
    speaker = Speaker(fast(tokenizer_object=inner, bos_token="<s>"))
    fact = Fact("Bos", "B", "p", foil="a")
    with pytest.raises(FactError, match="cuts the prompt 'Bos' differently before 'a' than before 'p'"):
        first_tokens(speaker, [fact], [contrast(fact)])
