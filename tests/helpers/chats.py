"""Chat templates in the style of well-known models, a tokenizer of bytes for them, and a tiny model."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import AddedToken

from helpers.tokenizers import byte_level
from mechunlearn.models.hooked import HookedModel

LLAMA2 = """
{%- if messages[0]['role'] == 'system' -%}
{%- set first = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set first = '' -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- set content = (first if loop.first else '') + message['content'] -%}
{%- if message['role'] == 'user' -%}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else -%}
{{ ' ' + content.strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}
"""

CHATML = """
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

GEMMA = """
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
{{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

TEMPLATES = {"Llama 2": LLAMA2, "ChatML": CHATML, "Gemma": GEMMA}
SPECIAL = ("</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>")


def chat_tokenizer(template: str | None) -> Any:
    """Every byte a token, the templates' marks as special tokens, and BOS and EOS."""
    tokenizer = byte_level(trim=True, merges=0)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL])
    tokenizer.eos_token = "</s>"
    tokenizer.chat_template = template
    return tokenizer


@cache
def chat_model(template: str) -> HookedModel:
    """A tiny random Llama in float64 that reads long messages (read-only)."""
    tokenizer = chat_tokenizer(template)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=512,
            tie_word_embeddings=False,
        )
        auto: Any = transformers.AutoModelForCausalLM
        model = auto.from_config(config).double().eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return HookedModel.from_hf(model, tokenizer)


def rendered(tokenizer: Any, message: str, *, system: str | None = None, **options: Any) -> list[int]:
    """The ids that the tokenizer itself makes of a message, up to where the answer begins."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": message})
    ids = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, **options
    )["input_ids"]
    return list(ids)
