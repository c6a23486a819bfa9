"""Prompt and answer stand side by side as running text has them, and are scored as they are written."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.tokenizers import byte_level, tiny_llama
from torch import Tensor

import mechunlearn as mu
from mechunlearn.core.facts.joining import between, joined
from mechunlearn.errors import FactError
from mechunlearn.models.encoding.batch import IGNORED
from mechunlearn.models.encoding.encoder import encode
from mechunlearn.models.scoring.scorer import answer_logprobs, option_logprobs

NOTHING, SPACE = "", " "

JOINED: dict[str, tuple[str, str, str]] = {
    "words": ("Mary plays", "golf", SPACE),
    "a label": ("Answer:", "A", SPACE),
    "a full stop": ("It rains.", "Mary", SPACE),
    "a space at the end": ("Mary plays ", "golf", NOTHING),
    "a space at the start": ("Mary plays", " golf", NOTHING),
    "a line break": ("Answer:\n", "golf", NOTHING),
    "Chinese": ("姚明从事的运动是", "篮球", NOTHING),
    "Chinese, a colon": ("运动：", "篮球", NOTHING),
    "Chinese, a full stop": ("姚明。", "篮球", NOTHING),
    "Chinese and Latin": ("姚明效力于", "NBA", NOTHING),
    "Latin and Chinese": ("The NBA is", "篮球", NOTHING),
    "Chinese, a quote": ("他说「", "篮球", NOTHING),
    "Hiragana": ("メアリーがするのは", "ゴルフ", NOTHING),
    "Katakana, a long vowel": ("メアリー", "ゴルフ", NOTHING),
    "Katakana, half as wide": ("ﾒｱﾘｰ", "ｺﾞﾙﾌ", NOTHING),
    "Thai": ("แมรี่เล่น", "กอล์ฟ", NOTHING),
    "Lao": ("ລາວຫຼິ້ນ", "ກອຟ", NOTHING),
    "Khmer": ("នាងលេង", "កូនវាយ", NOTHING),
    "Burmese": ("သူကစား", "ဂေါက်", NOTHING),
    "Tibetan": ("ཁོས་", "སྤོ", NOTHING),
    "Korean": ("메리가 하는 운동은", "골프", SPACE),
    "Arabic": ("ماري تلعب", "الغولف", SPACE),
    "Hebrew": ("מרי משחקת", "גולף", SPACE),
    "Cyrillic": ("Мария играет в", "гольф", SPACE),
    "Greek": ("Η Μαρία παίζει", "γκολφ", SPACE),
    "Hindi": ("मैरी खेलती है", "गोल्फ", SPACE),
    "an opening quote": ('The sport of Mary is "', "golf", NOTHING),
    "a closing quote": ('The "sport" of "Mary"', "golf", SPACE),
    "an opening apostrophe": ("The sport of Mary is '", "golf", NOTHING),
    "an apostrophe that closes a sentence": ("She said 'no.'", "Then", SPACE),
    "a genitive": ("The players'", "golf", SPACE),
    "a typographic opening quote": ("The sport of Mary is “", "golf", NOTHING),
    "a typographic closing quote": ("The sport of “Mary”", "golf", SPACE),
    "a low quote": ("Marys Sport ist „", "Golf", NOTHING),
    "a low quote that closes": ("Marys „Sport“", "ist Golf", SPACE),
    "a guillemet": ("Le sport de Marie est «", "golf", NOTHING),
    "a round bracket": ("f(", "golf", NOTHING),
    "a square bracket": ("f(Mary) = [", "golf", NOTHING),
    "a curly bracket": ("f{", "golf", NOTHING),
    "a bracket that closes": ("f(Mary)", "golf", SPACE),
    "an answer that closes": ("f(Mary", ") is golf", NOTHING),
    "a comma": ("Mary", ", who plays golf", NOTHING),
    "a question mark": ("Does Mary play golf", "?", NOTHING),
    "a per cent sign": ("The share is 5", "%", NOTHING),
    "dollars": ("The price is $", "5", NOTHING),
    "euros": ("The price is €", "5", NOTHING),
    "euros after their number": ("It costs 5 €", "a day", SPACE),
    "a sign and a number": ("The share is", ".5", SPACE),
    "the middle of a year": ("born in 19", "47", NOTHING),
    "after the decimal point": ("pi is 3.", "14", NOTHING),
    "after a comma in a number": ("about 1,", "000", NOTHING),
    "a number after a word": ("born in", "1947", SPACE),
    "a number after a full stop": ("Mary was born.", "1947", SPACE),
    "a word after a number": ("In 1947", "Mary", SPACE),
    "a hyphen in a word": ("Mary is left-", "handed", NOTHING),
    "a dash between words": ("Mary plays -", "golf", SPACE),
    "a slash": ("and/", "or", NOTHING),
    "a number sign": ("#", "golf", NOTHING),
    "a Spanish question": ("Dijo: ¿", "Golf", NOTHING),
    "nothing before": ("", "golf", NOTHING),
}


@pytest.mark.parametrize(("prompt", "answer", "expected"), JOINED.values(), ids=JOINED)
def test_between_prompt_and_answer_stands_what_running_text_has(
    prompt: str, answer: str, expected: str
) -> None:
    assert between(prompt, answer) == expected
    assert joined(prompt, answer) == prompt + expected + answer


def test_an_explicit_join_stands_as_it_is() -> None:
    assert joined("姚明", "篮球", " ") == "姚明 篮球"
    assert joined("Mary plays", "golf", "") == "Mary playsgolf"
    assert joined("Q: Mary?", "golf", "\n") == "Q: Mary?\ngolf"


@pytest.mark.parametrize("join", ["x", ", ", "none", "AUTO"])
def test_a_join_that_is_no_white_space_is_refused(join: str) -> None:
    message = f"join is {join!r}; give 'auto', or the white space between prompt and answer, such as ' ' or"
    with refused(FactError, message):
        mu.Fact("Mary plays", "Mary", "golf", join=join)


# -- on disk --------------------------------------------------------------------------------------------


def test_a_join_survives_on_disk(tmp_path: Path) -> None:
    joins = ("auto", " ", "", "\n")
    facts = mu.Facts([mu.Fact(f"Mary {i} plays", "Mary", "golf", join=join) for i, join in enumerate(joins)])
    facts.to_jsonl(tmp_path / "facts.jsonl")
    assert mu.Facts.from_jsonl(tmp_path / "facts.jsonl") == facts
    assert [fact.join for fact in mu.Facts.from_jsonl(tmp_path / "facts.jsonl")] == list(joins)
    assert "join" not in facts[0].to_record() and facts[2].to_record()["join"] == ""


def test_an_empty_cell_of_a_table_joins_as_running_text_does(tmp_path: Path) -> None:
    (tmp_path / "facts.csv").write_text("prompt,subject,answer,join\nMary plays,Mary,golf,\nAnn is,Ann,x, \n")
    assert [fact.join for fact in mu.Facts.from_csv(tmp_path / "facts.csv")] == ["auto", " "]


# -- as tokens ------------------------------------------------------------------------------------------

TOKENIZER = byte_level(trim=True, merges=0)
TOKENIZER.add_special_tokens({"eos_token": "</s>"})


@pytest.fixture(scope="module")
def model() -> mu.HookedModel:
    """A model that reads bytes, and so every script."""
    return mu.HookedModel.from_hf(tiny_llama(len(TOKENIZER)), TOKENIZER, prepend_bos=True)


def reference(prompt: str, answer: str) -> float:
    """The log-probability of the tokens of an answer, written right after its prompt."""
    start, end = TOKENIZER(prompt).input_ids, TOKENIZER(answer).input_ids
    row = torch.tensor([[TOKENIZER.bos_token_id, *start, *end]])
    with torch.no_grad():
        logprobs: Tensor = tiny_llama(len(TOKENIZER))(row).logits[0].log_softmax(-1)
    return float(logprobs[len(start) : -1].gather(1, torch.tensor(end)[:, None]).sum())


@pytest.mark.parametrize(
    ("prompt", "subject", "join", "written"),
    [
        ("姚明的运动是", "姚明", "auto", "{}"),
        ("姚明的运动是", "姚明", " ", " {}"),
        ('Mary plays "', "Mary", "auto", "{}"),
        ("Mary plays", "Mary", "auto", " {}"),
        ("Mary plays", "Mary", "", "{}"),
        ("Mary plays ", "Mary", "auto", " {}"),  # the answer begins with the space
    ],
)
def test_every_answer_is_scored_as_it_is_written(
    model: mu.HookedModel, prompt: str, subject: str, join: str, written: str
) -> None:
    words = ("golf", "tennis", "judo")
    fact = mu.Fact(prompt, subject, "golf", foil="judo", new="tennis", join=join)
    expected = [reference(prompt.rstrip(), written.format(word)) for word in words]
    scores = [float(answer_logprobs(model, [fact], name)) for name in ("answer", "new", "foil")]
    assert scores == pytest.approx(expected, abs=1e-5)
    options = fact.replace(options=words)
    assert option_logprobs(model, [options])[0].tolist() == pytest.approx(expected, abs=1e-5)
    outcome = mu.score(model, [fact])
    assert torch.tensor([outcome.p_answer[0], outcome.p_new[0]]).log().tolist() == pytest.approx(expected[:2])


def test_a_chinese_answer_is_scored_without_a_space(model: mu.HookedModel) -> None:
    fact = mu.Fact("姚明的运动是", "姚明", "篮球", new="网球")
    assert float(answer_logprobs(model, [fact])) == pytest.approx(reference("姚明的运动是", "篮球"), abs=1e-5)
    batch = encode(model, [fact, mu.Fact("Mary plays", "Mary", "golf")])
    assert batch.joins == ("", " ")
    assert batch.rows([1]).joins == (" ",) and batch.trimmed().to("cpu").joins == ("", " ")
    assert [TOKENIZER.decode([i for i in row if i != IGNORED]) for row in batch.answer_ids.tolist()] == [
        "篮球",
        " golf",
    ]


@pytest.mark.parametrize(("join", "written"), [("auto", " {}"), ("", "{}"), ("\n", "\n{}")])
def test_a_letter_is_joined_as_the_answer_is(model: mu.HookedModel, join: str, written: str) -> None:
    choice = "Mary? A {A} B {B} Answer:"
    fact = mu.Fact("Mary plays", "Mary", "golf", options=("golf", "judo"), choice=choice, join=join)
    question = fact.multiple_choice(0)
    expected = [reference(question.prompt, written.format(letter)) for letter in "AB"]
    assert option_logprobs(model, [question])[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_end_of_an_answer_is_scored_and_trained(model: mu.HookedModel) -> None:
    fact = mu.Fact("Mary plays", "Mary", "golf", new="judo", end="</s>")
    batch = encode(model, [fact])
    assert batch.answer_ids[0].tolist() == [*TOKENIZER(" golf").input_ids, TOKENIZER.eos_token_id]
    assert batch.labels[0][batch.labels[0] != IGNORED].tolist() == batch.answer_ids[0].tolist()
    assert float(answer_logprobs(model, [fact])) == pytest.approx(
        reference("Mary plays", " golf</s>"), abs=1e-5
    )
    expected = reference("Mary plays", " judo</s>")
    assert float(answer_logprobs(model, [fact], "new")) == pytest.approx(expected, abs=1e-5)
    assert fact == mu.Fact.from_record(fact.to_record())


def test_the_text_in_front_of_a_prompt_is_joined_like_an_answer() -> None:
    assert mu.Fact("Mary plays", "Mary", "golf").after("It rains.").prompt == "It rains. Mary plays"
    assert mu.Fact("姚明打", "姚明", "篮球").after("下雨了。").prompt == "下雨了。姚明打"


# -- spellings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "prompt", "codes"),
    [
        ("NFC", "NFD", ("U+00EB in the subject", "U+0308 in the prompt")),
        ("NFD", "NFC", ("U+0308 in the sub",)),
    ],
)
def test_two_spellings_that_look_alike_are_distinguished(subject: Any, prompt: Any, codes: Any) -> None:
    name, text = (unicodedata.normalize(form, "Zoë") for form in (subject, prompt))
    remedy = "spell both alike, as unicodedata.normalize('NFC', text) does"
    with refused(FactError, "they look alike but have other code points", *codes, remedy):
        mu.Fact(f"{text} plays", name, "golf")
    with refused(FactError, "write the subject as it stands in the prompt, capitals and spaces included"):
        mu.Fact("zoë plays", "Zoë", "golf")
