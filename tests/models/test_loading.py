"""Loading: whatever Hugging Face holds works, or is refused with a reason, and is left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.tiny_models import D_MODEL, VOCAB, hf_model, memory_tokenizer

from mechunlearn.errors import ModelError
from mechunlearn.models.hooked import HookedModel


def test_wrapping_leaves_the_users_model_and_tokenizer_as_they_were(family: str) -> None:
    model, tokenizer = hf_model(family).train(), memory_tokenizer()
    keys, config = list(model.state_dict()), model.config.to_dict()
    hm = HookedModel.from_hf(model, tokenizer)
    hm("in pens")
    assert list(model.state_dict()) == keys
    assert model.config.to_dict() == config
    assert config["architectures"] is None
    assert model.training
    assert not hm.hf.training
    assert (tokenizer.pad_token, tokenizer.unk_token, len(tokenizer)) == (None, None, VOCAB)
    assert "add_bos_token" not in tokenizer.init_kwargs
    assert all(a is b for a, b in zip(hm.hf.parameters(), model.parameters(), strict=True))


def test_the_bos_habit_of_a_family_is_that_of_transformer_lens(hm: HookedModel, family: str) -> None:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = hf_model(family)
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    assert hm.prepend_bos == hm.arch.prepends_bos == bridge.cfg.default_prepend_bos


def test_a_tokenizer_without_bos_gives_no_bos() -> None:
    tokenizer = memory_tokenizer()
    tokenizer.bos_token = None
    hm = HookedModel.from_hf(hf_model("llama"), tokenizer)
    assert not hm.prepend_bos
    assert hm.to_tokens("a", prepend_bos=True).shape == (1, 1)
    assert hm("a").shape == (1, 1, VOCAB)
    assert tokenizer.bos_token is None


def test_a_tokenizer_without_any_special_token_pads_and_writes_all_the_same(family: str) -> None:
    tokenizer = memory_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    hm = HookedModel.from_hf(hf_model(family), tokenizer)
    alone, both = hm("in"), hm(["in", "in pens"])
    assert (both[0, : alone.shape[1]] - alone[0]).abs().max() < 1e-4
    assert hm.generate(["in", "in pens"], max_new_tokens=2)[0] == hm.generate("in", max_new_tokens=2)
    assert (tokenizer.pad_token, tokenizer.eos_token, len(tokenizer)) == (None, None, VOCAB)


def test_tokens_added_in_memory_are_known_to_both_views() -> None:
    tokenizer = memory_tokenizer()
    tokenizer.add_tokens(["<new>"])
    hm = HookedModel.from_hf(hf_model("llama"), tokenizer)
    assert hm.to_single_token("<new>") == VOCAB
    assert hm.bridge.to_single_token("<new>") == VOCAB


def test_a_model_without_a_tokenizer_reads_ids_only() -> None:
    hm = HookedModel.from_hf(hf_model("llama"))
    assert hm(torch.tensor([3, 4])).shape == (1, 2, VOCAB)
    with pytest.raises(ModelError, match=r"has no tokenizer.*HookedModel\.from_hf\(model, tokenizer\)"):
        hm("text")


def test_what_is_saved_is_loaded_again(llama: HookedModel, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    again = HookedModel.from_pretrained(tmp_path, dtype="float32", device="cpu", prepend_bos=False)
    assert again.identity == llama.identity
    assert torch.equal(again.to_tokens("in pens"), llama.to_tokens("in pens", prepend_bos=False))
    assert HookedModel.from_pretrained(str(tmp_path), dtype=torch.bfloat16).dtype == torch.bfloat16
    for file in tmp_path.glob("*token*"):
        file.unlink()
    assert HookedModel.from_pretrained(tmp_path).tokenizer is None


def test_a_configuration_on_disk_needs_no_architectures(llama: HookedModel, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("architectures") == ["LlamaForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert HookedModel.from_pretrained(tmp_path).identity == llama.identity


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a folder without config\.json.*save_pretrained"):
        HookedModel.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"nowhere' is not a model: it is not a folder"):
        HookedModel.from_pretrained(tmp_path / "nowhere")


def test_damaged_files_are_refused(llama: HookedModel, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    llama.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, settings = weights.read_bytes(), config.read_text()

    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"cannot be loaded.*truncated or altered.*download it again"):
        HookedModel.from_pretrained(tmp_path)

    tensors = load_file(_written(weights, whole))
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"do not fill the model: 1 .*'model\.norm\.weight'"):
        HookedModel.from_pretrained(tmp_path)

    tensors["model.norm.weight"] = torch.ones(D_MODEL + 1)
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="truncated or altered"):
        HookedModel.from_pretrained(tmp_path)

    _written(weights, whole)
    config.write_text(settings[:100])
    with pytest.raises(ModelError, match=r"cannot be loaded.*truncated or altered"):
        HookedModel.from_pretrained(tmp_path)

    config.write_text("{}")
    with pytest.raises(ModelError, match=r"cannot be loaded.*truncated or altered"):
        HookedModel.from_pretrained(tmp_path)

    config.write_text(settings)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be loaded.*tokenizer\.save_pretrained"):
        HookedModel.from_pretrained(tmp_path)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_an_unsupported_architecture_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    config: Any = transformers.OPTConfig(hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'LlamaForCausalLM'.*; not 'OPTForCausalLM'"):
        HookedModel.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not 'OPTForCausalLM'"):
        HookedModel.from_hf(transformers.OPTForCausalLM(config))


def test_a_quantized_model_is_refused(llama: HookedModel, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantized models cannot be edited: load them in float32"):
        HookedModel.from_pretrained(tmp_path)
    model = hf_model("llama")
    model.config.quantization_config = config["quantization_config"]
    with pytest.raises(ModelError, match="quantized models cannot be edited"):
        HookedModel.from_hf(model)
