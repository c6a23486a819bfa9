"""What is generated is what the logits say: no settings of a checkpoint, no padding, no lost cache."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.tiny_models import VOCAB, hf_model, memory_tokenizer
from torch import Tensor, nn

import mechunlearn as mu
from mechunlearn.models import key_value_caches

PROMPT = "Mary plays in pen"
ROWS = [[44, 7], [5, 40, 33, 60, 21], [9]]
NEW = 8


reference = cache(hf_model)  # read-only


def plain(row: list[int], family: str = "llama") -> Tensor:
    """The logits [d_vocab] of the plain model after one row."""
    logits: Tensor = reference(family)(torch.tensor([row])).logits[0, -1].detach()
    return logits


def greedy(row: list[int], steps: int = NEW, family: str = "llama") -> list[int]:
    """The most probable tokens after a row, one by one."""
    new: list[int] = []
    for _ in range(steps):
        new.append(int(plain(row + new, family).argmax()))
    return new


def prompt() -> list[int]:
    return [0, *memory_tokenizer()(PROMPT).input_ids]


def configured(**settings: Any) -> Any:
    """A plain model whose checkpoint says how to generate."""
    model = hf_model("llama")
    config: Any = transformers.GenerationConfig
    model.generation_config = config(bos_token_id=0, eos_token_id=1, pad_token_id=1, **settings)
    return model


SETTINGS: dict[str, dict[str, Any]] = {
    "a repetition penalty": {"repetition_penalty": 1.5},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 1.0},
    "beams": {"num_beams": 4},
    "a smallest probability": {"do_sample": True, "min_p": 0.01, "temperature": 2.0},
    "suppressed tokens": {"suppress_tokens": list(range(2, VOCAB, 2))},
    "no repeated tokens": {"no_repeat_ngram_size": 1},
    "a forced end": {"forced_eos_token_id": 1},
    "a smallest length": {"min_new_tokens": 5, "suppress_tokens": list(range(3, VOCAB, 2))},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_greedy_text_is_the_most_probable_whatever_the_checkpoint_says(settings: dict[str, Any]) -> None:
    model, row = configured(**settings), prompt()
    expected = greedy(row)
    torch.manual_seed(0)
    configured_text = model.generate(torch.tensor([row]), max_new_tokens=NEW)[0, len(row) :].tolist()
    assert configured_text != expected, "these settings change nothing here"
    hm = mu.HookedModel.from_hf(model, memory_tokenizer())
    assert hm.generate([row], max_new_tokens=NEW, stop_at_eos=False)[0, len(row) :].tolist() == expected
    assert hm.generate(PROMPT, max_new_tokens=NEW, stop_at_eos=False) == memory_tokenizer().decode(
        row + expected, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_the_settings_of_a_checkpoint_stay_on_disk_and_are_not_followed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "do_sample": True, "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20, "top_p": 0.8
    }  # fmt: skip
    mu.HookedModel.from_hf(configured(**settings), memory_tokenizer()).save_pretrained(tmp_path)
    hm = mu.HookedModel.from_pretrained(tmp_path)
    assert {name: getattr(hm.hf.generation_config, name) for name in settings} == settings
    row = prompt()
    assert hm.generate([row], max_new_tokens=NEW, stop_at_eos=False)[0, len(row) :].tolist() == greedy(row)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("settings", [{}, {"top_k": 3, "repetition_penalty": 2.0}, {"top_p": 0.5}])
def test_sampled_tokens_follow_the_softmax(settings: dict[str, Any], temperature: float) -> None:
    hm, row, count = mu.HookedModel.from_hf(configured(**settings)), prompt(), 2000
    rows = torch.tensor([row]).repeat(count, 1)
    written = hm.generate(
        rows, max_new_tokens=1, do_sample=True, temperature=temperature, seed=3, stop_at_eos=False
    )
    p = (plain(row) / temperature).double().softmax(-1)
    shares = torch.bincount(written[:, -1], minlength=VOCAB) / count
    # The total variation that chance leaves, and half as much again.
    chance = (2 * p * (1 - p) / (torch.pi * count)).sqrt().sum() / 2
    assert (shares - p).abs().sum() / 2 < 1.5 * chance < 0.15
    assert (shares > 0).sum() > 20


def test_rows_of_different_length_are_continued_as_one_by_one(hm: mu.HookedModel, family: str) -> None:
    expected = [greedy(row, 4, family) for row in ROWS]
    width = max(map(len, ROWS))
    for side in ("left", "right"):
        lost = [[0] * (width - len(row)) for row in ROWS]
        both = list(zip(lost, ROWS, strict=True))
        ids = [gap + row if side == "left" else row + gap for gap, row in both]
        ones = [[1] * len(row) for row in ROWS]
        marks = [gap + one if side == "left" else one + gap for gap, one in zip(lost, ones, strict=True)]
        encoded = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(marks)}
        written = hm.generate(encoded, max_new_tokens=4, stop_at_eos=False)
        assert written[:, -4:].tolist() == expected
    for row, new in zip(ROWS, expected, strict=True):
        assert hm.generate([row], max_new_tokens=4, stop_at_eos=False).tolist() == [row + new]


# -- keys and values that are kept ----------------------------------------------------------------------


def without_cache(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What attention gets if nobody passes the cache on."""
    return args, {name: value for name, value in kwargs.items() if name != "past_key_values"}


def failing(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if kwargs.get("past_key_values") is not None:
        raise RuntimeError("no cache here")


def broken(hook: Any) -> mu.HookedModel:
    """A model whose attention does something else with the cache, and whose bridge was checked."""
    hm = mu.HookedModel.from_hf(hf_model("llama"), memory_tokenizer())
    for block in hm.bridge.blocks:
        block.attn.register_forward_pre_hook(hook, with_kwargs=True)
    key_value_caches.connect(hm.bridge)
    return hm


def test_every_family_keeps_keys_and_values(hm: mu.HookedModel) -> None:
    assert key_value_caches.reason_against(hm.bridge) == ""


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (without_cache, "cached keys and values lead to other logits than the complete text"),
        (failing, r"a run with cached keys and values failed \(RuntimeError: no cache here\)"),
    ],
)
def test_attention_that_cannot_use_a_cache_gets_none(hook: Any, reason: str) -> None:
    hm, row = broken(hook), prompt()
    with pytest.warns(UserWarning, match=f"generate runs the whole text for every new token, since {reason}"):
        written = hm.generate([row], max_new_tokens=NEW, stop_at_eos=False)
    assert written[0, len(row) :].tolist() == greedy(row)
    again = hm.generate([row], max_new_tokens=NEW, stop_at_eos=False, use_past_kv_cache=False)
    assert torch.equal(again, written)


def test_a_cache_that_nobody_reads_would_give_another_text(monkeypatch: pytest.MonkeyPatch) -> None:
    hm, row = broken(without_cache), prompt()
    monkeypatch.setattr(key_value_caches, "reason_against", lambda bridge: "")
    written = hm.generate([row], max_new_tokens=NEW, stop_at_eos=False)
    assert written[0, len(row) :].tolist() != greedy(row)


class Renamed(nn.Module):
    """Attention of a library that calls the cache ``cache``."""

    def forward(self, states: Tensor, cache: Any = None) -> Tensor:
        return states


class Before(nn.Module):
    """The same before the argument had its new name."""

    def forward(self, states: Tensor, past_key_values: Any = None) -> Tensor:
        return states


class Attention(nn.Module):
    """Attention that sums all states so far, and reads the cache under its old name only."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original_component = original

    def forward(self, states: Tensor, **kwargs: Any) -> Tensor:
        past = kwargs.get("past_key_values")
        before = states if past is None else past.update(states[:, None], states[:, None], 0)[0][:, 0]
        return before.cumsum(1)[:, -states.shape[1] :]


class Decoder(nn.Module):
    """A model of one block, which passes the cache on under its new name."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.embedding, self.attn = nn.Embedding(20, 4), Attention(original)
        self.config = transformers.LlamaConfig(num_hidden_layers=1)

    @property
    def blocks(self) -> list[Decoder]:
        return [self]

    @property
    def original_model(self) -> Decoder:
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, tokens: Tensor, cache: Any = None, use_cache: bool = True) -> Any:
        states = self.attn(self.embedding(tokens), cache=cache)
        return transformers.modeling_outputs.CausalLMOutput(logits=states @ self.embedding.weight.T)


def test_a_renamed_cache_is_read_under_its_old_name() -> None:
    bridge = Decoder(Renamed())
    key_value_caches.connect(bridge)
    assert key_value_caches.reason_against(bridge) == ""


def test_a_cache_under_a_name_that_nobody_reads_is_noticed() -> None:
    bridge = Decoder(Before())
    key_value_caches.connect(bridge)
    assert key_value_caches.reason_against(bridge) == (
        "cached keys and values lead to other logits than the complete text"
    )


def test_only_a_renamed_argument_is_renamed() -> None:
    rename = key_value_caches._under_the_name_that_is_read
    assert rename(None, (1,), {"cache": "c", "mask": 2}) == ((1,), {"past_key_values": "c", "mask": 2})
    assert rename(None, (), {"cache": "c", "past_key_values": None}) == ((), {"past_key_values": "c"})
    assert rename(None, (), {"past_key_values": "p"}) == ((), {"past_key_values": "p"})
    both = {"cache": "c", "past_key_values": "p"}
    assert rename(None, (), both) == ((), {"cache": "c", "past_key_values": "p"})
