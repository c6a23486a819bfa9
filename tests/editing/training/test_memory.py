"""What the blocks below an edit give is remembered, whoever runs the model."""

from __future__ import annotations

import torch
from helpers.deep_models import deep_model
from helpers.partial_runs import counted as counted
from helpers.small_facts import FACTS
from torch import Tensor

from mechunlearn.editing.training.activation_cache import CacheBudget
from mechunlearn.editing.training.partial_forward import Runner
from mechunlearn.models.hooked import HookedModel
from mechunlearn.models.scoring.scorer import score


def test_what_is_remembered_gives_the_same_scores_without_the_blocks_below(
    counted: tuple[HookedModel, list[int]],
) -> None:
    hm, counts = counted
    expected = score(hm, FACTS)
    memory: dict[bytes, Tensor] = {}
    runner = Runner.of(hm, (), entry=2)
    for again in (False, True):
        before = [*counts]
        with runner.remembering(memory, CacheBudget(1 << 20, 0, None)):
            found = score(runner.hm, FACTS)
        assert (found.p_answer == expected.p_answer).all() and found.text == expected.text
        assert (counts[0] == before[0]) is again and counts[3] > before[3]
    assert not runner.hm.hf._forward_hooks and not runner.hm.hf._forward_pre_hooks


def test_what_is_remembered_stays_within_its_limit() -> None:
    memory: dict[bytes, Tensor] = {}
    runner = Runner.of(deep_model(), (), entry=2)
    sizes = []
    for limit in (0, 1000, 100_000):
        memory.clear()
        with runner.remembering(memory, CacheBudget(limit, 0, None)):
            for text in ("Bo", "Bo plays", "Bo plays golf"):
                tokens = runner.hm.to_tokens(text)
                runner.hm.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        sizes.append(sum(kept.nbytes for kept in memory.values()))
        assert sizes[-1] <= limit
    assert sizes[0] == 0 < sizes[1] < sizes[2]


def test_the_same_tokens_under_another_mask_are_another_question() -> None:
    hm = deep_model()
    memory: dict[bytes, Tensor] = {}
    runner = Runner.of(hm, (), entry=2)
    tokens = hm.to_tokens("Bo plays golf")
    whole, cut = torch.ones_like(tokens), torch.ones_like(tokens)
    cut[:, 1] = 0
    with runner.remembering(memory, CacheBudget(1 << 20, 0, None)):
        for mask in (whole, cut):
            found = runner.hm.hf(input_ids=tokens, attention_mask=mask).logits
            expected = hm.hf(input_ids=tokens, attention_mask=mask).logits
            assert (found - expected)[mask.bool()].abs().max() < 1e-5
