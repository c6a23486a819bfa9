"""Which examples a step takes, and in which order."""

from __future__ import annotations

import pytest
import torch
from helpers.fed_data import MANY, MANY_NEW, WORDS, draw, feed, spoken

from mechunlearn.editing.objectives.requests import Request
from mechunlearn.models.hooked import HookedModel

FORGETTING = {"forget": Request("forget")}


def test_reads_of_the_same_set_share_their_examples_and_one_run(llama: HookedModel) -> None:
    requests = {
        "short": Request("forget"),
        "long": Request("forget", positions="all"),
        "new": Request("forget", "new"),
    }
    source = feed(llama, requests, MANY_NEW, batch_size=3)
    ran: list[int] = []
    source.runner.hm.hf.register_forward_hook(lambda module, args, output: ran.append(len(output.logits)))
    readings = draw(source)
    assert ran == [3, 3]
    assert spoken(llama, readings["short"]) == [text[-8:] for text in spoken(llama, readings["long"])]


def test_all_answers_of_a_set_are_answers_to_the_same_questions(llama: HookedModel) -> None:
    requests = {
        "old": Request("forget", positions="all"),
        "new": Request("forget", "new", positions="all"),
        "texts": Request("forget", ("no", "never"), positions="all"),
    }
    source = feed(llama, requests, MANY_NEW, batch_size=4, seed=1)
    for _ in range(7):
        readings = draw(source)
        asked = {
            name: [said[: len("prompt 00")] for said in spoken(llama, reading)]
            for name, reading in readings.items()
        }
        assert asked["old"] == asked["new"] == asked["texts"] and len(set(asked["old"])) == 4
        numbers = [said[-2:] for said in spoken(llama, readings["new"])]
        assert numbers == [said[-2:] for said in spoken(llama, readings["old"])]


def test_what_else_is_read_does_not_change_the_order(llama: HookedModel) -> None:
    alone = feed(llama, FORGETTING, MANY, batch_size=6, seed=2)
    beside = feed(llama, {**FORGETTING, "text": Request("text")}, MANY, batch_size=6, seed=2)
    for _ in range(4):
        assert spoken(llama, draw(alone)["forget"]) == spoken(llama, draw(beside)["forget"])


def test_no_example_comes_twice_before_all_came_once(llama: HookedModel) -> None:
    source = feed(llama, FORGETTING, MANY, batch_size=8, seed=3)
    seen = [word for _ in range(5) for word in spoken(llama, draw(source)["forget"])]
    assert sorted(seen[:20]) == sorted(seen[20:]) == sorted(f" {word}" for word in WORDS.values())
    assert seen[:20] != seen[20:]
    again = feed(llama, FORGETTING, MANY, batch_size=8, seed=3)
    assert spoken(llama, draw(again)["forget"]) == seen[:8]
    other = feed(llama, FORGETTING, MANY, batch_size=8, seed=4)
    assert spoken(llama, draw(other)["forget"]) != seen[:8]


@pytest.mark.parametrize(
    ("batch_size", "questions", "texts"), [(8, 8, 2), (5, 5, 2), (1, 1, 1), (99, 20, 20)]
)
def test_a_step_takes_a_quarter_as_many_texts_as_questions(
    llama: HookedModel, batch_size: int, questions: int, texts: int
) -> None:
    requests = {"forget": Request("forget"), "text": Request("text")}
    readings = draw(feed(llama, requests, MANY, batch_size=batch_size))
    assert len(set(readings["forget"].row.tolist())) == questions
    assert len(set(readings["text"].row.tolist())) == texts


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_are_the_examples_of_a_step_cut_up_in_order(llama: HookedModel, parts: int) -> None:
    requests = {"forget": Request("forget"), "text": Request("text")}
    whole = draw(feed(llama, requests, MANY, batch_size=19))
    source = feed(llama, requests, MANY, batch_size=19, parts=parts)
    cut = [source.read(part, {}) for part in source.draw()]
    assert len(cut) == parts
    for name, reading in whole.items():
        said = [spoken(llama, part[name]) for part in cut]
        assert [word for words in said for word in words] == spoken(llama, reading)
        assert max(map(len, said)) - min(map(len, said)) <= 1
        joined = torch.cat([part[name].logits for part in cut])
        assert (joined - reading.logits).abs().max() < 1e-4
