"""Text, tokens and text again: one BOS rule, padding that changes nothing, and going on writing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_models import VOCAB
from helpers.tokenizers import CORPUS, byte_level, metaspace, sentencepiece, tiny_llama

from mechunlearn.errors import ModelError
from mechunlearn.models.hooked import HookedModel

TEXTS = ["Mary plays in pen", "a", "in pens"]


def test_text_becomes_tokens_and_text_again(llama: HookedModel) -> None:
    tokens = llama.to_tokens(TEXTS[0])
    assert tokens[0, 0] == 0
    assert llama.to_string(tokens[0, 1:]) == TEXTS[0]
    assert llama.to_string(llama.to_tokens(TEXTS, prepend_bos=False))[0] == TEXTS[0]
    assert llama.to_str_tokens("a pin") == ["<s>", "a", " p", "in"]
    assert llama.to_str_tokens(llama.to_tokens("a pin", prepend_bos=False)) == ["a", " p", "in"]
    assert llama.to_str_tokens(["a", "in"], prepend_bos=False) == [["a"], ["in"]]
    assert llama.to_single_token("in") == VOCAB - 1


def test_a_string_of_several_tokens_is_no_single_token(llama: HookedModel) -> None:
    with pytest.raises(
        ModelError, match=r"'pin' is 2 tokens, \['p', 'in'\], not one; mind the leading space"
    ):
        llama.to_single_token("pin")
    with pytest.raises(ModelError, match="a text without a single token"):
        llama.encode(["a", ""], prepend_bos=False)


def test_padding_changes_nothing(hm: HookedModel) -> None:
    tokens, mask = hm.encode(TEXTS)
    logits = hm(TEXTS)
    assert (mask.diff(dim=1) <= 0).all()
    for row, text in enumerate(TEXTS):
        alone = hm(text)[0]
        assert (logits[row, : len(alone)] - alone).abs().max() < 1e-5
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    kept = mask[:, 1:].flatten() == 1
    assert (hm(TEXTS, return_type="loss") - losses[kept].mean()).abs() < 1e-5


def test_generation_pads_on_the_left_and_keeps_hooks(hm: HookedModel) -> None:
    several = hm.generate(TEXTS, max_new_tokens=4, stop_at_eos=False)
    assert several == [hm.generate(text, max_new_tokens=4, stop_at_eos=False) for text in TEXTS]
    ids = hm.generate(hm.to_tokens(TEXTS[0]), max_new_tokens=4, stop_at_eos=False)
    plain = hm.hf.generate(
        hm.to_tokens(TEXTS[0]), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=1
    )
    assert torch.equal(ids, plain)
    slow = hm.generate(TEXTS, max_new_tokens=4, stop_at_eos=False, use_past_kv_cache=False)
    assert slow == several
    with hm.hooks([("blocks.0.hook_mlp_out", lambda x, hook: -9 * x)]):
        assert hm.generate(TEXTS, max_new_tokens=4, stop_at_eos=False) != several


def test_generation_stops_at_eos_if_told_to(llama: HookedModel) -> None:
    end = [("unembed.hook_out", lambda logits, hook: logits.index_fill(-1, torch.tensor([1]), 1e4))]
    with llama.hooks(end):
        assert llama.generate(llama.to_tokens("in"), max_new_tokens=3).shape == (1, 3)
        assert llama.generate(llama.to_tokens("in"), max_new_tokens=3, stop_at_eos=False).shape == (1, 5)


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(llama: HookedModel) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    texts = [llama.generate("in", max_new_tokens=8, do_sample=True, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before)


SPACED: dict[str, tuple[Any, str]] = {
    "metaspace": (metaspace(size=400), " "),
    "metaspace, letters": (metaspace(size=40), " "),
    "metaspace, none before the text": (metaspace(scheme="never", size=400), ""),
    "sentencepiece": (sentencepiece(size=400), " "),
    "sentencepiece, letters": (sentencepiece(size=10), " "),
    "byte-level": (byte_level(trim=True, merges=100), ""),
}


def reader(tokenizer: Any) -> HookedModel:
    return HookedModel.from_hf(tiny_llama(len(tokenizer)), tokenizer)


@pytest.mark.parametrize(("tokenizer", "before"), SPACED.values(), ids=SPACED)
def test_tokens_as_strings_keep_the_spaces_of_a_text(tokenizer: Any, before: str) -> None:
    hm, text = reader(tokenizer), CORPUS[0]
    strings = hm.to_str_tokens(text)
    assert strings[0] == "<s>" and "".join(strings[1:]) == before + text
    assert hm.to_str_tokens(hm.to_tokens(text)) == strings
    assert len(strings) == 1 + len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert hm.to_string(hm.to_tokens(text, prepend_bos=False)[0]) == text


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_word_with_its_space_is_one_token_of_a_sentencepiece_tokenizer(scheme: str) -> None:
    tokenizer = metaspace(scheme=scheme, size=400)
    golf = tokenizer.convert_tokens_to_ids("▁golf")
    assert golf != tokenizer.unk_token_id
    assert reader(tokenizer).to_single_token(" golf") == golf
    with pytest.raises(
        ModelError, match=r"' golf tennis' is 2 tokens, \[' golf', ' tennis'\], not one; mind"
    ):
        reader(tokenizer).to_single_token(" golf tennis")


def test_a_word_that_opens_a_text_has_its_space_as_well() -> None:
    tokenizer = sentencepiece(size=400)
    golf = tokenizer.convert_tokens_to_ids("▁golf")
    assert reader(tokenizer).to_single_token(" golf") == reader(tokenizer).to_single_token("golf") == golf


@pytest.mark.parametrize("tokenizer", [metaspace(size=400), sentencepiece(size=400), byte_level(trim=True)])
def test_a_generated_text_begins_with_its_prompt(tokenizer: Any) -> None:
    hm = reader(tokenizer)
    for prompt in ("Mary Lee plays", "The player Mary Lee is"):
        tokens = hm.to_tokens(prompt)
        with torch.no_grad():
            new = int(hm.hf(tokens).logits[0, -1].argmax())
        expected = tokenizer.decode([*tokens[0].tolist(), new], skip_special_tokens=True)
        assert hm.generate(prompt, max_new_tokens=1, stop_at_eos=False) == expected
        assert expected.startswith(prompt)
