"""Anchors are found as whole words, longest first, and every untouched character knows where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.small_facts import unchecked
from hypothesis import given
from hypothesis import strategies as st

from mechunlearn.editing.whp.anchor_proposal import propose_anchors
from mechunlearn.editing.whp.anchors import Anchors
from mechunlearn.errors import DataError, FactError

WORDS = st.sampled_from(["Ed", "Edna", "Ed Orr", "Orr", "ran", "é", "Orr's Map", "the", "Map"])
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", ", ", "  ", "\n", "'s "])), max_size=12).map(
    lambda parts: "".join(word + gap for word, gap in parts)
)
GENERIC = st.sampled_from(["Tom", "Al Bo", "x", "the", "Ed"])
DICTIONARIES = st.dictionaries(WORDS, GENERIC, max_size=5)


# -- finding and translating ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("anchors", "text", "translated"),
    [
        ({"Ed": "Tom"}, "Ed's map, Edna's; ed (Ed)", "Tom's map, Edna's; ed (Tom)"),
        ({"Ed": "Tom", "Ed Orr": "Al Bo"}, "Ed Orr and Ed", "Al Bo and Tom"),
        ({"Ed\nOrr": "Al"}, "Ed Orr, Ed\n Orr", "Al, Al"),
        ({"A B": "1", "B C D": "2"}, "A B C D", "A 2"),
        ({"A B": "1", "B C": "2"}, "A B C", "1 C"),
        ({"Ed": "Orr", "Orr": "Ed"}, "Ed Orr", "Orr Ed"),
        ({"(!)": "oh"}, "so(!)so", "soohso"),
        ({"a.b": "x"}, "a.b acb", "x acb"),
        ({}, "Ed", "Ed"),
    ],
)
def test_longest_anchors_are_replaced_first_and_as_whole_words(
    anchors: dict[str, str], text: str, translated: str
) -> None:
    assert Anchors(anchors).translate(text).text == translated


@given(TEXTS, DICTIONARIES)
def test_every_character_of_a_translation_is_an_anchors_or_the_originals(
    text: str, words: dict[str, str]
) -> None:
    found = Anchors(words).translate(text)
    covered = set()
    for mention in found.mentions:
        assert words[mention.anchor] == found.text[slice(*mention.translated)]
        assert " ".join(text[mention.start : mention.end].split()) == mention.anchor
        covered |= set(range(*mention.translated))
    back = [found.source(at, at + 1) for at in range(len(found.text))]
    assert {at for at, source in enumerate(back) if source is None} == covered
    kept = [source for source in back if source is not None]
    assert all(text[slice(*s)] == found.text[at] for at, s in enumerate(back) if s is not None)
    inside = {at for m in found.mentions for at in range(m.start, m.end)}
    assert [s[0] for s in kept] == [at for at in range(len(text)) if at not in inside]


@given(TEXTS, st.sets(WORDS))
def test_an_identity_dictionary_changes_nothing(text: str, words: set[str]) -> None:
    assert Anchors({word: word for word in words}).translate(" ".join(text.split())).text == " ".join(
        text.split()
    )


def test_characters_across_an_anchors_edge_have_no_source() -> None:
    found = Anchors({"Ed": "Thomas"}).translate("so Ed ran")
    assert found.source(0, 3) == (0, 3) and found.source(9, 13) == (5, 9)
    assert found.source(2, 4) is None and found.source(8, 10) is None and found.source(4, 6) is None


# -- a mapping, in memory and on disk --------------------------------------------------------------------


def test_anchors_are_a_mapping_that_is_edited_by_making_another(tmp_path: Path) -> None:
    anchors = Anchors({"Zoë Karth": "Al Bo", "Ed": "Tom"})
    more = Anchors({**anchors, "Ed": "Sam"})
    assert (anchors["Ed"], more["Ed"], len(more), list(more)) == ("Tom", "Sam", 2, ["Zoë Karth", "Ed"])
    anchors.save(tmp_path / "anchors.json")
    assert Anchors.load(tmp_path / "anchors.json") == anchors
    assert "Zoë" in (tmp_path / "anchors.json").read_text(encoding="utf-8")
    assert repr(more) == "Anchors({'Zoë Karth': 'Al Bo', 'Ed': 'Sam'})"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({" ": "Tom"}, "the anchor is ' '; give a word or several"),
        ({"Ed": ""}, "the translation of the anchor 'Ed' is ''; give a word"),
        (["Ed"], r"the anchors are \['Ed'\]; give a mapping from the text's expressions to generic ones, as"),
        ({"Ed": None}, "the translation of the anchor 'Ed' is None; give a word"),
        ({"Ed Orr": "a", "Ed  Orr": "b"}, "the anchor 'Ed  Orr' is given twice, with other white space"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(words: Any, message: str) -> None:
    with unchecked(), pytest.raises(FactError, match=message):
        Anchors(words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": "mechunlearn anch', "is not a whole anchor dictionary: .*write it with Anchors.save"),
        ("[]", 'it does not say "format": "mechunlearn anchors 1"'),
        ('{"format": "mechunlearn anchors 1", "anchors": {"Ed": 3}}', "not a mapping from text to text"),
        ('{"format": "mechunlearn anchors 1", "anchors": {"Ed": ""}}', "the translation of the anchor 'Ed'"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        Anchors.load(tmp_path / "a.json")


def test_what_is_saved_is_plain_json(tmp_path: Path) -> None:
    Anchors({"Ed": "Tom"}).save(tmp_path / "a.json")
    record: Any = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert record == {"format": "mechunlearn anchors 1", "anchors": {"Ed": "Tom"}}


# -- proposals -------------------------------------------------------------------------------------------


STORY = (
    "Orla Venn sailed to Ossaria. The captain, Orla Venn, and Tobin Karth slept near Ossaria. "
    "Orla's map showed the House of Ash! Karth laughed, and Orla ran to the House of Ash.",
    "Rain fell. People said that Rain would end. When Tobin Karth came, people ran. In Ossaria, too: rain!",
)


def test_names_are_proposed_with_one_generic_word_for_each_of_theirs() -> None:
    anchors = propose_anchors(STORY, people=("A", "B", "C"), surnames=("D", "E", "F"), places="PQ")
    assert set(anchors) == {"Orla Venn", "Orla", "Tobin Karth", "Ossaria", "House of Ash"}
    first, last = anchors["Orla Venn"].split()
    assert anchors["Orla"] == first in "ABC" and last in "DEF" and anchors["Ossaria"] == "P"
    assert anchors["House of Ash"].split()[1] == "of"
    parts = [word for words in anchors.values() for word in words.split() if word != "of"]
    assert len(set(parts)) == len({w for name in anchors for w in name.split()} - {"of"})


def test_common_words_and_names_known_elsewhere_are_not_proposed() -> None:
    assert "Rain" not in propose_anchors(STORY) and "When" not in propose_anchors(STORY, min_count=1)
    assert "Ossaria" not in propose_anchors(STORY, against=["Boats go to Ossaria, and back from Ossaria."])
    assert "Karth" in propose_anchors(STORY, min_count=1) and "Karth" not in propose_anchors(STORY)


def test_generic_words_are_not_of_the_text() -> None:
    told = ["Then Orla met Adam. Then Orla left Adam."]
    assert set(propose_anchors(told, people=("Adam", "Bo", "Cy")).values()) == {"Bo", "Cy"}


def test_generic_words_that_run_out_are_asked_for() -> None:
    with pytest.raises(
        FactError, match="no generic word left for 'House of Ash'; give more with people=, surn"
    ):
        propose_anchors(STORY, people=())
