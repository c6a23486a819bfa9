"""A fact that exists is usable; a collection keeps what belongs to it, in memory and on disk."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.facts.kinds import SPLITS
from mechunlearn.errors import DataError, FactError

MARY = Fact(
    "Mary Lee plays the sport of",
    "Mary Lee",
    "golf",
    foil="hockey",
    new="tennis",
    relation="sport",
    train=("The sport of Mary Lee is",),
    validation=("Mary Lee is good at",),
    held_out=("Q: What does Mary Lee play? A:",),
    options=("golf", "tennis", "hockey", "football", "baseball", "basketball"),
    choice="Q: What does Mary Lee play? A {A} B {B} C {C} D {D} Answer:",
    entailed=(Fact("Mary Lee plays in the", "Mary Lee", "PGA", new="ATP"),),
    others=(Fact("Mary Lee lives in", "Mary Lee", "Denver"),),
    neighbours={"same first name": (Fact("Mary Fox plays the sport of", "Mary Fox", "golf"),)},
)
ANN = Fact("Ann Ray plays the sport of", "Ann Ray", "chess", relation="sport", split="retain")
TOM = Fact("Tom Orr plays the sport of", "Tom Orr", "hockey", relation="sport", split="test")
FACTS = Facts([MARY, ANN, TOM], text=("It rains.", "A bird\nsings."), name="people")


# -- a fact ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "mary plays"}, "'mary plays' does not contain its subject 'Mary Lee'; write the subject"),
        ({"train": ("She plays",)}, "'She plays' does not contain its subject"),
        ({"choice": "Q: {A} {B}?"}, "'Q: {A} {B}\\?' does not contain its subject"),
        ({"subject": " "}, "has an empty subject; name whom it is about"),
        ({"answer": " "}, "the answer of 'Mary Lee plays the sport of' is empty; give at least one word"),
        ({"foil": ""}, "the foil of .* is empty; give a word, or None"),
        ({"foil": " golf"}, "the foil of .* equals the answer 'golf'; give another word, or None"),
        ({"new": "golf"}, "the new of .* equals the answer 'golf'"),
        ({"split": "train"}, "split must be one of 'forget', 'retain' or 'test'; not 'train'"),
        (
            {"options": ("tennis", "hockey")},
            r"the options \('tennis', 'hockey'\) of .* lack the answer 'golf'",
        ),
        ({"options": ("golf", "hockey")}, "lack the new 'tennis'; add it"),
        ({"options": ("golf", "tennis", " golf")}, "repeat one; remove it"),
        ({"options": ("golf", "tennis")}, "4 fields such as {A} and the fact has 2 options; give two fields"),
        ({"choice": "What does Mary Lee play?"}, "has 0 fields such as {A}"),
        ({"held_out": MARY.train}, "the held_out phrasing 'The sport of Mary Lee is' is also listed"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_fact_that_contradicts_itself_says_how_to_mend_it(changes: Any, message: str) -> None:
    with pytest.raises(FactError, match=message):
        MARY.replace(**changes)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_of_phrasing_names_the_choices() -> None:
    unknown: Any = "test"
    with pytest.raises(
        FactError, match="which must be one of 'train', 'validation' or 'held_out'; not 'test'"
    ):
        MARY.phrasings(unknown)


def test_the_subject_is_found_as_the_last_word_of_its_own() -> None:
    assert MARY.prompt[slice(*MARY.subject_span)] == "Mary Lee"
    assert Fact("Ann or Anna: Ann and Annabel", "Ann", "x").subject_span == (13, 16)
    assert Fact("东京是日本的", "日本", "x").subject_span == (3, 5)


def test_phrasings_are_the_same_fact_asked_otherwise() -> None:
    assert [fact.prompt for fact in MARY.phrasings("train")] == [MARY.prompt, *MARY.train]
    (validation,) = MARY.phrasings("validation")
    alone = MARY.replace(train=(), validation=(), held_out=())
    assert validation.prompt == MARY.validation[0] and validation.replace(prompt=MARY.prompt) == alone
    assert ANN.phrasings("held_out") == ()


def test_a_prompt_that_is_also_held_out_would_be_trained_on_and_is_refused() -> None:
    with pytest.raises(FactError, match="held_out phrasing 'Mary plays' is also listed for another use"):
        Fact("Mary plays", "Mary", "golf", held_out=("Mary plays",))


def test_a_retained_prompt_cannot_be_held_out_for_a_forgotten_fact() -> None:
    forget = Fact("Mary plays", "Mary", "golf", relation="sport", held_out=("Mary is known for",))
    retain = Fact("Mary is known for", "Mary", "golf", relation="sport", split="retain")
    rephrased = Fact("Fans of Mary love", "Mary", "golf", relation="sport", split="retain")
    for double in (retain, rephrased):
        with pytest.raises(FactError, match="stands in both 'forget' and 'retain'; keep it in one"):
            Facts([forget, double])


def test_multiple_choice_shows_answer_and_new_answer_and_is_answered_by_a_letter() -> None:
    orders = set()
    for seed in range(30):
        question = MARY.multiple_choice(seed)
        shown = dict(zip(question.options, question.prompt.split("play? ")[1].split()[1:8:2], strict=True))
        assert question.options == ("A", "B", "C", "D") and question.prompt.endswith("Answer:")
        assert shown[question.answer] == "golf" and shown[question.new or ""] == "tennis"
        assert shown[question.foil or ""] == "hockey" and len(set(shown.values())) == 4
        assert (question.subject, question.split, question.relation) == ("Mary Lee", "forget", "sport")
        orders.add(tuple(shown.values()))
    assert len(orders) > 15
    assert MARY.multiple_choice(3) == MARY.multiple_choice(3)


def test_one_seed_gives_every_fact_another_order() -> None:
    names = [f"{first} Fox" for first in string.ascii_uppercase]
    options = ("golf", "tennis", "chess")
    facts = [
        Fact(
            f"{name} plays", name, "golf", options=options, choice=f"{name}? A {{A}} B {{B}} C {{C}} Answer:"
        )
        for name in names
    ]
    assert len({fact.multiple_choice(0).answer for fact in facts}) == 3


def test_multiple_choice_without_a_prompt_says_so() -> None:
    with pytest.raises(
        FactError, match="'Ann Ray plays the sport of' has no multiple-choice prompt; give it `ch"
    ):
        ANN.multiple_choice(0)


@pytest.mark.usefixtures("unchecked")
def test_lists_become_tuples_and_a_fact_can_be_hashed() -> None:
    lists: Any = {"train": list(MARY.train), "options": list(MARY.options), "others": list(MARY.others)}
    assert MARY.replace(**lists) == MARY and hash(MARY.replace(**lists)) == hash(MARY)


# -- a collection ---------------------------------------------------------------------------------------


def test_splits_are_collections_with_the_same_text() -> None:
    assert (list(FACTS.forget), list(FACTS.retain), list(FACTS.test)) == ([MARY], [ANN], [TOM])
    assert FACTS.forget.text == FACTS.text and FACTS[:2].name == "people"
    assert list(FACTS.maintained) == [TOM] and list(FACTS[:2].maintained) == [ANN]


def test_sums_join_facts_and_texts_once() -> None:
    assert FACTS[:1] + FACTS[1:] == FACTS


def test_a_missing_split_says_what_there_is() -> None:
    FACTS.require("forget", "retain", "test")
    with pytest.raises(
        FactError, match=r"the retain set is empty .1 forget, 0 retain, 0 test; 2 texts.; give at"
    ):
        FACTS.forget.require("forget", "retain")
    with pytest.raises(FactError, match="the forget set is empty"):
        FACTS.retain.require("forget")


def test_a_fact_stands_in_one_split_only() -> None:
    with pytest.raises(
        FactError, match=r"'Ann Ray plays .*' stands in both 'retain' and 'forget'; keep it in one"
    ):
        FACTS + Facts([ANN.replace(split="forget")])
    taught = ANN.replace(prompt="Ann Ray likes", train=(ANN.prompt,), split="forget")
    with pytest.raises(FactError, match="stands in both"):
        Facts([ANN, taught])


def test_what_is_no_fact_is_refused() -> None:
    wrong: Any = [{"prompt": "x"}]
    with pytest.raises(FactError, match=r"\{'prompt': 'x'\} is not a Fact; make facts of dictionaries with"):
        Facts(fact for fact in wrong)


def test_a_collection_shows_itself() -> None:
    assert repr(FACTS).splitlines()[:2] == [
        "Facts 'people': 1 forget, 1 retain, 1 test; 2 texts",
        "  forget Mary Lee plays the sport of -> golf (new: tennis)",
    ]
    many = Facts([ANN.replace(prompt=f"{i} Ann Ray") for i in range(11)])
    assert repr(many).endswith("... 3 more")
    shown = Facts([Fact("<b> Ann", "Ann", "x")])._repr_html_()
    assert "&lt;b&gt; Ann" in shown and "<b>" not in shown


# -- on disk --------------------------------------------------------------------------------------------


words = st.text(min_size=1, max_size=8).filter(str.strip)


@st.composite
def facts(draw: st.DrawFn, *, depth: int = 1, split: str | None = None) -> Fact:
    subject, answer, new = draw(st.lists(words, min_size=3, max_size=3, unique_by=str.strip))
    prompts = draw(st.lists(words.map(lambda word: f"{word}{subject} "), min_size=4, max_size=4, unique=True))
    nested = st.just(()) if depth == 0 else st.lists(facts(depth=depth - 1), max_size=2).map(tuple)
    return Fact(
        prompts[0], subject, answer,
        new=draw(st.none() | st.just(new)),
        relation=draw(st.just("") | words),
        split=split or draw(st.sampled_from(SPLITS)),  # type: ignore[arg-type]
        train=tuple(prompts[1 : draw(st.integers(1, 2))]), held_out=tuple(prompts[2:3]),
        validation=tuple(prompts[3:]), options=draw(st.just(()) | st.just((new, answer))),
        entailed=draw(nested), others=draw(nested),
        neighbours=draw(st.just({}) | st.dictionaries(words, nested, max_size=2)),
    )  # fmt: skip


@given(facts())
@settings(max_examples=40)
def test_a_fact_survives_its_record(fact: Fact) -> None:
    assert Fact.from_record(fact.to_record()) == fact


@given(st.lists(facts(split="test"), max_size=3), st.lists(words, max_size=3))
@settings(max_examples=30, deadline=None)
def test_json_lines_keep_everything(tmp_path_factory: Any, several: list[Fact], text: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "facts.jsonl"
    collection = Facts(several, text=text, name="x")
    collection.to_jsonl(path)
    again = Facts.from_jsonl(path)
    assert again == collection and again.name == "x" and hash(again) == hash(collection)


@given(st.lists(facts(depth=0, split="retain"), max_size=6), st.slices(6))
@settings(max_examples=50)
def test_slices_are_those_of_a_list(several: list[Fact], cut: slice) -> None:
    collection = Facts(several, text=("x",))
    assert list(collection[cut]) == several[cut] and collection[cut].text == ("x",)
    assert [*collection[: len(several) // 2], *collection[len(several) // 2 :]] == several


def test_nested_facts_and_text_survive_json_lines(tmp_path: Path) -> None:
    FACTS.to_jsonl(tmp_path / "facts.jsonl")
    assert Facts.from_jsonl(tmp_path / "facts.jsonl") == FACTS
    assert [path.name for path in tmp_path.iterdir()] == ["facts.jsonl"]


def test_json_lines_of_others_are_read_with_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"q": "Mary plays", "who": "Mary", "a": "golf", "id": 1}\n\n', encoding="utf-8")
    read = Facts.from_jsonl(path, columns={"prompt": "q", "subject": "who", "answer": "a"})
    assert list(read) == [Fact("Mary plays", "Mary", "golf")] and read.name == "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-30], "line 4 is not JSON .* the file is cut short or altered"),
        (
            lambda text: "\n".join(text.split("\n")[:-2]),
            "announces 3 facts and holds 2: it is cut short or altered",
        ),
        (
            lambda text: text.replace("facts/1", "facts/9"),
            "has the format 'mechunlearn.facts/9', expected 'mech",
        ),
        (lambda text: text + "[]\n", r"line 5 must be a JSON object; not '\[\]'"),
    ],
)
def test_an_altered_file_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "facts.jsonl"
    FACTS.to_jsonl(path)
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        Facts.from_jsonl(path)


def test_csv_cells_hold_lists_as_json_or_between_bars(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text(
        "\ufeffprompt,subject,gold,options,train,neighbours,new\n"
        'Mary plays,Mary,golf,golf | tennis,"[""Mary, who plays""]",'
        '"{""near"": [{""prompt"": ""Ann plays"", ""subject"": ""Ann"", ""answer"": ""golf""}]}",\n',
        encoding="utf-8",
    )
    (fact,) = Facts.from_csv(path, columns={"answer": "gold"}, text=["It rains."])
    neighbour = Fact("Ann plays", "Ann", "golf")
    assert fact == Fact(
        "Mary plays", "Mary", "golf", options=("golf", "tennis"), train=("Mary, who plays",),
        neighbours={"near": (neighbour,)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ("Ann plays,Mary,golf", None, "record 1: the prompt 'Ann plays' does not contain its subject 'Mary'"),
        (
            "Mary,Mary,golf",
            {"answer": "label"},
            "column 'label', wanted for 'answer', is not among the columns 'pro",
        ),
        (
            "Mary,Mary,golf",
            {"reply": "answer"},
            "a key of columns must be one of 'prompt', 'subject'.*not 'reply'",
        ),
        ("Mary,Mary,golf,[1", None, "record 1: cell '\\[1' starts like JSON and cannot be read"),
        ("Mary,Mary,,", None, "record 1: the answer of 'Mary' is empty; give at least one word"),
    ],
)
def test_a_table_that_cannot_be_used_says_where(tmp_path: Path, row: str, columns: Any, message: str) -> None:
    path = tmp_path / "facts.csv"
    path.write_text(f"prompt,subject,answer,options\n{row}\n", encoding="utf-8")
    with pytest.raises(FactError, match=message):
        Facts.from_csv(path, columns=columns)


def test_a_row_with_too_many_cells_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text("prompt,subject,answer\nMary, who plays,Mary,golf\n", encoding="utf-8")
    with pytest.raises(
        DataError, match="row 1 has more cells than the header has columns; put quotation marks"
    ):
        Facts.from_csv(path)


def test_a_hugging_face_dataset_is_read_with_a_mapping() -> None:
    import datasets

    rows = {
        "q": ["Mary plays"],
        "subject": ["Mary"],
        "year": [1912],
        "options": [["1912", "1913"]],
        "new": [None],
    }
    dataset = datasets.Dataset.from_dict(rows)
    (fact,) = Facts.from_dataset(dataset, columns={"prompt": "q", "answer": "year"})
    assert fact == Fact("Mary plays", "Mary", "1912", options=("1912", "1913"))
    with pytest.raises(
        FactError, match=r"a DatasetDict with the keys \['train'\]; give one split, as in dataset\['train'\]"
    ):
        Facts.from_dataset(datasets.DatasetDict({"train": dataset}))


def test_edits_train_on_one_half_of_the_text_and_are_scored_on_the_other() -> None:
    facts = Facts(text=["one", "two", "three"])
    assert (facts.train_text, facts.test_text) == (("one", "three"), ("two",))
    assert Facts(text=["one"]).test_text == ()


def test_a_file_that_an_earlier_version_wrote_is_read(tmp_path: Path) -> None:
    header = '{"format": "mechunlearn.facts/1", "name": "capitals", "facts": 1, "text": []}'
    record = '{"prompt": "The capital of France is", "subject": "France", "answer": "Paris"}'
    (tmp_path / "facts.jsonl").write_text(f"{header}\n{record}\n")
    facts = Facts.from_jsonl(tmp_path / "facts.jsonl")
    assert (facts.name, facts[0].answer) == ("capitals", "Paris")
