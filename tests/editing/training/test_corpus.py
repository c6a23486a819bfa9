"""Text with labels of its own, which are read in place of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest
import torch
from helpers.fed_data import draw, feed
from helpers.refusals import refused
from helpers.small_facts import fit
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.editing.edits.recipes import Stop
from mechunlearn.editing.objectives.requests import Outputs, Request
from mechunlearn.errors import FactError
from mechunlearn.models.encoding.batch import Batch
from mechunlearn.models.encoding.encoder import encode_text
from mechunlearn.models.hooked import HookedModel


def labelled(hm: HookedModel, texts: tuple[str, ...] = ("it rains", "no", "sun in May")) -> Batch:
    """Text in which only the last token of each row is asked for, and another than it is."""
    batch = encode_text(hm, texts)
    labels = torch.full_like(batch.labels, -100)
    labels[torch.arange(len(texts)), batch.lengths - 2] = 7
    return replace(batch, labels=labels)


def test_a_corpus_is_read_where_it_has_labels_of_its_own(llama: HookedModel) -> None:
    readings = draw(feed(llama, {"mine": Request("corpus")}, corpus=labelled(llama)))
    reading = readings["mine"]
    assert reading.labels.tolist() == [7, 7, 7] and reading.row.tolist() == [0, 1, 2]
    for row, text in enumerate(("it rains", "no", "sun in May")):
        alone = llama.hf(input_ids=llama.to_tokens(text)).logits[0, -2]
        assert (reading.logits[row] - alone).abs().max() < 1e-4


def test_a_step_takes_a_quarter_as_many_rows_of_a_corpus_as_questions(llama: HookedModel) -> None:
    texts = tuple(f"text {i:02}" for i in range(9))
    reading = draw(feed(llama, {"mine": Request("corpus")}, batch_size=8, corpus=labelled(llama, texts)))[
        "mine"
    ]
    assert len(set(reading.row.tolist())) == 2


def test_a_corpus_that_is_read_must_be_there_and_have_labels_in_every_row(llama: HookedModel) -> None:
    with pytest.raises(FactError, match=r"a corpus with labels of its own and there is none; give corpus="):
        feed(llama, {"mine": Request("corpus")})
    corpus = labelled(llama)
    corpus.labels[1] = -100
    with pytest.raises(FactError, match=r"a row of the corpus has no label \(all are -100\).*leave it out"):
        feed(llama, {"mine": Request("corpus")}, corpus=corpus)


@dataclass(frozen=True)
class Relabelling:
    """Reads a corpus with labels of its own."""

    aim: ClassVar[Literal["new", "forget"]] = "forget"
    requests: ClassVar[Mapping[str, Request]] = {"mine": Request("corpus")}

    def __call__(self, readings: Mapping[str, Outputs]) -> dict[str, Tensor]:
        reading = readings["mine"]
        return {"relabel": -reading.logits.log_softmax(-1).gather(-1, reading.labels[:, None]).mean()}


def test_a_corpus_is_trained_on_without_any_facts(llama: HookedModel) -> None:
    corpus = encode_text(llama, ("it rains", "in May", "so warm"))
    fitted = fit(llama, objective=Relabelling(), facts=Facts([]), corpus=corpus, steps=12, stop=Stop())
    losses = [entry["relabel"] for entry in fitted.history]
    assert len(losses) == 12 and losses[-1] < 0.5 * losses[0]
    with refused(FactError, "reads a corpus with labels of its own and there is none", hm=llama):
        fit(llama, objective=Relabelling())
    corpus.labels[0] = -100
    with refused(FactError, "a row of the corpus has no label (all are -100)", "leave it out", hm=llama):
        fit(llama, objective=Relabelling(), corpus=corpus)
