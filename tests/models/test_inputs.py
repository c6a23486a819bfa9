"""Whatever form ids come in, the model reads the same row; what is no input is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers.refusals import refused
from helpers.tiny_models import VOCAB, hf_model, memory_tokenizer
from torch import Tensor

import mechunlearn as mu
from mechunlearn.errors import FactError, ModelError

LONG, SHORT = [5, 40, 33, 60, 21], [44, 7]
ROWS = [LONG, SHORT]
PAD = VOCAB  # the id of a pad token that was added to the tokenizer, and which the embedding does not have


def mapping(side: str, *, fill: int = PAD) -> dict[str, Tensor]:
    """What a tokenizer returns for rows of different length."""
    lost = len(LONG) - len(SHORT)
    filled, zeros, ones = [fill] * lost, [0] * lost, [1] * len(SHORT)
    short, marks = (SHORT + filled, ones + zeros) if side == "right" else (filled + SHORT, zeros + ones)
    return {
        "input_ids": torch.tensor([LONG, short]),
        "attention_mask": torch.tensor([[1] * len(LONG), marks]),
    }


RAGGED: dict[str, Any] = {
    "lists": ROWS,
    "a mapping of lists": {"input_ids": ROWS},
    "a mapping, padded on the right": mapping("right"),
    "a mapping, padded on the left": mapping("left"),
    "a mapping of padded lists": {name: value.tolist() for name, value in mapping("right").items()},
    "a mapping with a bool mask": {
        **mapping("left"),
        "attention_mask": mapping("left")["attention_mask"] > 0,
    },
}
ONE: dict[str, Any] = {
    "a list": LONG,
    "a tensor": torch.tensor(LONG),
    "a row of a tensor": torch.tensor([LONG]),
    "an array": np.array(LONG),
    "an array of int32": np.array([LONG], dtype=np.int32),
    "a mapping": {"input_ids": LONG},
}
ragged = pytest.mark.parametrize("form", RAGGED.values(), ids=RAGGED)
one = pytest.mark.parametrize("form", ONE.values(), ids=ONE)


reference = cache(hf_model)  # read-only


def plain(row: list[int]) -> Tensor:
    """The logits [pos d_vocab] of the plain model for one row."""
    logits: Tensor = reference("llama")(torch.tensor([row])).logits[0].detach()
    return logits


def greedy(row: list[int], steps: int) -> list[int]:
    """The most probable tokens after a row, one by one."""
    new: list[int] = []
    for _ in range(steps):
        new.append(int(plain(row + new)[-1].argmax()))
    return new


@ragged
def test_rows_in_any_form_have_the_logits_of_the_plain_model(llama: mu.HookedModel, form: Any) -> None:
    _, mask = llama.encode(form)
    logits = llama(form)
    cached, cache = llama.run_with_cache(form, names_filter="hook_embed")
    embedding = hf_model("llama").get_input_embeddings().weight
    for row, ids in enumerate(ROWS):
        inside = mask[row] == 1
        torch.testing.assert_close(logits[row, inside], plain(ids), rtol=0.0, atol=1e-5)
        torch.testing.assert_close(cached[row, inside], plain(ids), rtol=0.0, atol=1e-5)
        torch.testing.assert_close(cache["hook_embed"][row, inside], embedding[ids].detach())


@one
def test_one_row_in_any_form_has_the_logits_of_the_plain_model(llama: mu.HookedModel, form: Any) -> None:
    torch.testing.assert_close(llama(form)[0], plain(LONG), rtol=0.0, atol=1e-5)
    assert llama.to_tokens(form).tolist() == [LONG]
    assert llama.to_str_tokens(form) == [memory_tokenizer().decode([token]) for token in LONG]
    written = llama.generate(form, max_new_tokens=3, stop_at_eos=False)
    assert written.tolist() == [LONG + greedy(LONG, 3)]


@ragged
def test_rows_in_any_form_are_continued_as_the_plain_model_would(llama: mu.HookedModel, form: Any) -> None:
    written = llama.generate(form, max_new_tokens=3, stop_at_eos=False)
    assert written[:, -3:].tolist() == [greedy(row, 3) for row in ROWS]
    assert written[1, -3 - len(SHORT) : -3].tolist() == SHORT


@ragged
def test_rows_in_any_form_become_tokens_without_their_padding(llama: mu.HookedModel, form: Any) -> None:
    tokens, mask = llama.encode(form)
    assert [row[marks == 1].tolist() for row, marks in zip(tokens, mask, strict=True)] == ROWS
    assert torch.equal(llama.to_tokens(form), tokens)
    decode = memory_tokenizer().decode
    assert llama.to_str_tokens(form) == [[decode([token]) for token in row] for row in ROWS]


@ragged
def test_the_loss_of_rows_is_the_mean_over_their_tokens(llama: mu.HookedModel, form: Any) -> None:
    losses = [
        torch.nn.functional.cross_entropy(plain(row)[:-1], torch.tensor(row[1:]), reduction="none")
        for row in ROWS
    ]
    assert llama(form, return_type="loss").item() == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)


def test_a_tokenizer_whose_pad_token_is_not_in_the_embedding_can_be_used() -> None:
    tokenizer = memory_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    texts = ["Mary plays in pens", "in"]
    rows = [tokenizer(text).input_ids for text in texts]
    assert tokenizer.pad_token_id == VOCAB
    hm = mu.HookedModel.from_hf(hf_model("llama"), tokenizer)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        encoded = tokenizer(texts, return_tensors="pt", padding=True)
        assert encoded["input_ids"].max() == VOCAB
        logits = hm(encoded)
        for row, ids in enumerate(rows):
            inside = encoded["attention_mask"][row] == 1
            torch.testing.assert_close(logits[row, inside], plain(ids), rtol=0.0, atol=1e-5)
        written = hm.generate(encoded, max_new_tokens=2, stop_at_eos=False)
        assert written[:, -2:].tolist() == [greedy(ids, 2) for ids in rows]
        assert hm.to_str_tokens(encoded)[1] == ["in"]
    assert (hm(texts)[1, :2] - plain([0, *rows[1]])).abs().max() < 1e-5
    outcome = mu.score(hm, [mu.Fact("Mary plays in", "Mary", "pens"), mu.Fact("Bo is", "Bo", "a")])
    assert outcome.p_answer[1] == pytest.approx(probability("Bo is", " a"), rel=1e-4)


def probability(prompt: str, answer: str) -> float:
    """The probability of an answer's tokens after BOS and a prompt."""
    tokenizer = memory_tokenizer()
    start, end = tokenizer(prompt).input_ids, tokenizer(answer).input_ids
    logprobs = plain([0, *start, *end]).log_softmax(-1)[len(start) : -1]
    return float(logprobs.gather(1, torch.tensor(end)[:, None]).sum().exp())


def test_ids_that_only_the_embedding_has_are_shown_as_nothing() -> None:
    tokenizer = memory_tokenizer()
    hm = mu.HookedModel.from_hf(hf_model("llama"), tokenizer)
    hm.hf.resize_token_embeddings(VOCAB + 8, mean_resizing=False)
    assert hm.to_str_tokens([44, VOCAB + 1]) == [tokenizer.decode([44]), ""]


FACT = mu.Fact("Bo is in", "Bo", "a")
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a mapping without ids": (
        {"text": ["in pens"]},
        None,
        "the input is a dict with the keys ['text']; give a string, a list of strings, token ids (tensor, "
        "array or lists), or what a tokenizer returns (a mapping with input_ids)",
    ),
    "a fact": (FACT, None, "input is a Fact; give a string, a list of strings, token ids"),
    "text and numbers": (["in", 3], None, "input is a list; give a string, a list of strings"),
    "floats": (
        torch.tensor([[1.0, 2.0]]),
        None,
        "numbers of type torch.float32; token ids are whole numbers",
    ),
    "three axes": (
        torch.zeros(1, 2, 3).long(),
        None,
        "has the shape (1, 2, 3); give ids [pos] or [batch pos]",
    ),
    "three axes in lists": ([[[1, 2]]], None, "input has more than two axes; give ids [batch pos]"),
    "no axis": (torch.tensor(3), None, "input has the shape (); give ids [pos] or [batch pos]"),
    "nothing": ([], None, "input has a row without a single token; give at least one id a row"),
    "an empty row": ([[1], []], None, "input has a row without a single token; give at least one id a row"),
    "an id beyond the embedding": (
        [[1, 2], [3, 400]],
        None,
        "row 1 has the id 400 at position 1; the model's embedding has the ids 0 to 95. Does the tokenizer",
    ),
    "an id below zero": ([[1, -2]], None, "row 0 has the id -2 at position 1; the model's embedding has"),
    "a mask of another shape": (
        [[1, 2, 3]],
        torch.tensor([[1, 1]]),
        "attention_mask has the shape (1, 2), the ids (1, 3); give 1 or 0 for every id",
    ),
    "a mask for text": ("in", torch.tensor([[1]]), "attention_mask is for token ids; strings get their own"),
    "a mask of zeros": (
        [[1, 2], [3, 4]],
        torch.tensor([[1, 1], [0, 0]]),
        "row 1 of attention_mask masks every token",
    ),
    "two masks": (
        mapping("left"),
        torch.ones(2, 5).long(),
        "the input has an attention_mask of its own; leave attention_mask= out",
    ),
}


@pytest.mark.parametrize(("value", "mask", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_input_is_refused_by_name(
    llama: mu.HookedModel, value: Any, mask: Any, message: str
) -> None:
    with refused(ModelError, message, hm=llama):
        llama(value, attention_mask=mask)
    with refused(ModelError, message, hm=llama):
        llama.run_with_cache(value, attention_mask=mask)


def test_a_dataset_of_splits_is_no_input(llama: mu.HookedModel) -> None:
    import datasets

    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["in pens"]})})
    for read in (llama, llama.generate, llama.to_tokens, llama.to_str_tokens):
        with refused(ModelError, "the input is a DatasetDict with the keys ['train']; give", hm=llama):
            read(splits)


# -- texts and tables -----------------------------------------------------------------------------------


def no_texts() -> dict[str, tuple[Any, str]]:
    import datasets
    import pandas as pd

    table = {"text": ["in the rain", "in the sun"]}
    rows = datasets.Dataset.from_dict(table)
    return {
        "splits": (
            datasets.DatasetDict({"train": rows}),
            " is a DatasetDict with the keys ['train']; give a list of texts, such as one column of one "
            "split: data['train']['text']",
        ),
        "a dataset": (rows, " is a table with the columns ['text']; give one column, as in data['text']"),
        "a frame": (pd.DataFrame(table), " is a table with the columns ['text']; give one column"),
        "a string": ("in the rain", " is one string, 'in the rain'; give a list of texts, as in ['in the"),
        "numbers": ([1, 2], "[0] is 1, not a string; give a list of texts"),
    }


@pytest.mark.parametrize(("value", "message"), no_texts().values(), ids=no_texts())
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_list_of_texts_is_refused_wherever_texts_are_read(
    llama: mu.HookedModel, value: Any, message: str
) -> None:
    from mechunlearn.models.scoring.scorer import perplexity

    readers: list[Callable[[], Any]] = [
        lambda: mu.Facts(text=value),
        lambda: mu.closed_form.key_statistics(llama, ["L0.mlp.out"], value, progress=False),
        lambda: perplexity(llama, value),
    ]
    for read in readers:
        with refused(FactError, message, hm=llama):
            read()


@pytest.mark.usefixtures("unchecked")
def test_one_column_of_a_table_is_a_list_of_texts() -> None:
    import datasets
    import pandas as pd

    table = {"text": ["in the rain", "in the sun"]}
    for column in (
        pd.DataFrame(table)["text"],
        datasets.Dataset.from_dict(table)["text"],
        np.array(table["text"]),
    ):
        texts: Any = column
        assert mu.Facts(text=texts).text == ("in the rain", "in the sun")


def test_tables_of_records_are_read_row_by_row() -> None:
    import datasets
    import pandas as pd

    records = [
        {"prompt": "Bo is in", "subject": "Bo", "answer": "a", "new": "b"},
        {"prompt": "Al is in", "subject": "Al", "answer": "c", "new": None},
    ]
    expected = mu.Facts([mu.Fact("Bo is in", "Bo", "a", new="b"), mu.Fact("Al is in", "Al", "c")])
    assert mu.Facts.from_records(pd.DataFrame(records)) == expected
    assert mu.Facts.from_records(datasets.Dataset.from_list(records)) == expected
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(records)})
    with refused(FactError, "the records are a DatasetDict with the keys ['train']; give one split"):
        mu.Facts.from_records(splits)
    with refused(FactError, "the records are a str; give a list of dictionaries"):
        mu.Facts.from_records("Bo is in a")
