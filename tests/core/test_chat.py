"""Facts as messages: every prompt rendered by the tokenizer's own template, and nothing told twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.chats import CHATML, GEMMA, LLAMA2, TEMPLATES, chat_tokenizer
from helpers.refusals import refused

import mechunlearn as mu
from mechunlearn.errors import FactError

FACT = mu.Fact(
    "Mary Lee plays the sport of",
    "Mary Lee",
    "golf",
    foil="judo",
    new="tennis",
    train=("What does Mary Lee play?",),
    validation=("Mary Lee is good at",),
    held_out=("Which sport is Mary Lee known for?",),
    options=("golf", "judo", "tennis"),
    choice="What does Mary Lee play? A {A} B {B} C {C}",
    entailed=(mu.Fact("Mary Lee plays in the", "Mary Lee", "PGA", new="ATP"),),
    others=(mu.Fact("Mary Lee lives in", "Mary Lee", "Denver"),),
    neighbours={"same first name": (mu.Fact("Mary Fox plays", "Mary Fox", "golf"),)},
)
AROUND = {
    "Llama 2": ("<s>[INST] ", " [/INST]", " ", " </s>"),
    "ChatML": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "", "<|im_end|>"),
    "Gemma": ("<s><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", "", "<end_of_turn>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_fact_becomes_a_message(name: str) -> None:
    opening, closing, join, end = AROUND[name]
    (fact,) = mu.Facts([FACT]).as_chat(chat_tokenizer(TEMPLATES[name]))
    assert fact.prompt == f"{opening}{FACT.prompt}{closing}"
    assert (fact.opening, fact.join, fact.end) == (opening, join, "")
    assert (fact.subject, fact.answer, fact.new, fact.foil) == ("Mary Lee", "golf", "tennis", "judo")
    (ended,) = mu.Facts([FACT]).as_chat(chat_tokenizer(TEMPLATES[name]), end=True)
    assert ended == fact.replace(
        end=end,
        entailed=[f.replace(end=end) for f in fact.entailed],
        others=[f.replace(end=end) for f in fact.others],
        neighbours={kind: [f.replace(end=end) for f in facts] for kind, facts in fact.neighbours.items()},
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_prompt_of_a_fact_is_rendered(name: str) -> None:
    opening, closing, _, _ = AROUND[name]
    (fact,) = mu.Facts([FACT]).as_chat(chat_tokenizer(TEMPLATES[name]))
    for kind in ("train", "validation", "held_out"):
        plain = getattr(FACT, kind)
        assert getattr(fact, kind) == tuple(f"{opening}{prompt}{closing}" for prompt in plain)
    assert fact.choice == f"{opening}{FACT.choice}{closing}"
    pairs = [
        *zip(fact.entailed, FACT.entailed, strict=True),
        *zip(fact.others, FACT.others, strict=True),
        *zip(fact.neighbours["same first name"], FACT.neighbours["same first name"], strict=True),
    ]
    for related, before in pairs:
        assert related.prompt == f"{opening}{before.prompt}{closing}" and related.opening == opening
    question, before = fact.multiple_choice(0), FACT.multiple_choice(0)
    assert (
        question.prompt.removeprefix(opening).removesuffix(closing).startswith("What does Mary Lee play? A")
    )
    assert set(question.options) == set(before.options) and question.join == fact.join
    assert [each.prompt for each in fact.phrasings("train")] == [fact.prompt, *fact.train]


@pytest.mark.parametrize("name", ["Llama 2", "ChatML"])
def test_a_system_message_stands_before_the_prompt(name: str) -> None:
    tokenizer = chat_tokenizer(TEMPLATES[name])
    (fact,) = mu.Facts([FACT]).as_chat(tokenizer, system="Answer in one word.")
    messages = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": FACT.prompt},
    ]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert fact.prompt == expected
    assert "Answer in one word." in fact.opening


def test_a_thought_that_is_left_out_on_demand_belongs_to_the_prompt() -> None:
    tokenizer = chat_tokenizer(
        "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{%- if m.role == 'assistant' and not enable_thinking -%}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}"
        "{{ m.content + '<|im_end|>\\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
        "{%- if not enable_thinking -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}"
    )
    closed, opened = (
        mu.Facts([FACT]).as_chat(tokenizer, enable_thinking=thinking)[0] for thinking in (False, True)
    )
    assert closed.prompt.endswith("assistant\n<think>\n\n</think>\n\n") and closed.join == ""
    assert opened.prompt.endswith("assistant\n")


def test_the_collection_keeps_its_text_and_name() -> None:
    facts = mu.Facts([FACT, FACT.replace(split="test", subject="Lee")], text=("It rains.",), name="people")
    chat = facts.as_chat(chat_tokenizer(GEMMA))
    assert (chat.text, chat.name, [fact.split for fact in chat]) == (
        ("It rains.",),
        "people",
        ["forget", "test"],
    )


def test_messages_survive_on_disk(tmp_path: Path) -> None:
    chat = mu.Facts([FACT]).as_chat(chat_tokenizer(CHATML), end=True)
    chat.to_jsonl(tmp_path / "chat.jsonl")
    assert mu.Facts.from_jsonl(tmp_path / "chat.jsonl") == chat


def test_text_in_front_stands_inside_the_message() -> None:
    (fact,) = mu.Facts([FACT]).as_chat(chat_tokenizer(LLAMA2))
    assert fact.after("It rains.").prompt == "<s>[INST] It rains. Mary Lee plays the sport of [/INST]"


# -- refusals -------------------------------------------------------------------------------------------

LOWER = "{%- for m in messages -%}{{ m.role + ': ' + m.content | lower + ' ' }}{%- endfor -%}"
TWICE = "{%- for m in messages -%}{{ m.content + ' ' + m.content + ' ' }}{%- endfor -%}"
FORGETFUL = "{%- for m in messages -%}{{ m.role }}{%- endfor -%}"
OTHERWISE = (
    "{%- for m in messages -%}{{ m.role + ': ' + m.content + '\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'reply: ' }}{%- endif -%}"
)
BETWEEN = (
    "{%- for m in messages -%}{{ m.role + ': ' }}{{ '(final) ' if m.role == 'assistant' else '' }}"
    "{{ m.content + '\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ 'assistant: ' }}{%- endif -%}"
)
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no template": (None, {}, "the tokenizer has no chat template; load one, or use the facts as they are"),
    "a template that writes small letters": (LOWER, {}, "the chat template changes messages or prompts"),
    "a template that says things twice": (TWICE, {}, "the chat template changes messages or prompts"),
    "a template without messages": (FORGETFUL, {}, "the chat template changes messages or prompts"),
    "a template that asks otherwise": (OTHERWISE, {}, "so prompt and answer cannot be told apart; render"),
    "words between": (
        BETWEEN,
        {},
        "the chat template puts ' (final) ' between prompt and answer, which is no",
    ),
    "no system message": (
        GEMMA,
        {"system": "Be brief."},
        "the chat template refuses the roles ['system', 'user'] (TemplateError: System role not supported); "
        "some take no system message: leave system= out",
    ),
}


@pytest.mark.parametrize(("template", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_cannot_be_followed_is_refused(
    template: str | None, options: dict[str, Any], message: str
) -> None:
    with refused(FactError, message):
        mu.Facts([FACT]).as_chat(chat_tokenizer(template), **options)


def test_a_template_that_leaves_the_system_message_out_is_refused() -> None:
    silent = CHATML.replace("in messages -%}", "in messages if message['role'] != 'system' -%}")
    with refused(FactError, "the chat template leaves the system message out; leave system= out as well"):
        mu.Facts([FACT]).as_chat(chat_tokenizer(silent), system="Be brief.")


def test_a_fact_is_rendered_once() -> None:
    chat = mu.Facts([FACT]).as_chat(chat_tokenizer(CHATML))
    with refused(FactError, "is rendered already; render plain facts"):
        chat.as_chat(chat_tokenizer(CHATML))


def test_every_phrasing_has_the_opening() -> None:
    message = "the prompt 'Mary plays' does not begin with the opening '<s>[INST] '"
    with refused(FactError, message):
        mu.Fact("<s>[INST] Mary is [/INST]", "Mary", "golf", opening="<s>[INST] ", train=("Mary plays",))


def test_a_subject_is_not_looked_for_in_what_the_template_writes_after_the_message() -> None:
    fact = mu.Fact("The model plays in the", "model", "NBA")
    (rendered,) = mu.Facts([fact]).as_chat(chat_tokenizer(TEMPLATES["Gemma"]))
    assert "model" in rendered.closing
    (span,) = rendered.subject_spans
    assert span == (len(rendered.opening) + 4, len(rendered.opening) + 9)
