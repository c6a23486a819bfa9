"""Generic labels by hand, and against both models asked row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_models import hf_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechunlearn.editing.whp.alignment import NONE, Alignment, Seen, align
from mechunlearn.editing.whp.anchors import Anchors
from mechunlearn.editing.whp.labels import generic_labels
from mechunlearn.editing.whp.relabeled_text import first_tokens, relabel
from mechunlearn.editing.whp.text_blocks import blocks, tokens_of
from mechunlearn.errors import FactError, TrainingError
from mechunlearn.models.encoding.batch import IGNORED
from mechunlearn.models.encoding.encoder import encode_text
from mechunlearn.models.hooked import HookedModel

TEXTS = ["Ed ran in a pine. Then Ed ate, and Zo ate in pain.", "In spain Ed paints."]
ANCHORS = {"Ed": "Thomas", "Zo": "Al", "spain": "a pan"}


@pytest.fixture(scope="module")
def pair(tokenizer: Any) -> tuple[HookedModel, HookedModel]:
    """A model and another that stands for the reinforced one."""
    base, other = (HookedModel.from_hf(hf_model("llama", seed=seed), tokenizer) for seed in (0, 1))
    return base.to(torch.float64), other.to(torch.float64)


def straight(rows: int) -> Alignment:
    return Alignment(torch.arange(rows), repeated=0, seen=())


def logits(hm: HookedModel, text: str) -> Tensor:
    """Every row of a text, the last one too, by the plain model."""
    with torch.no_grad():
        found: Tensor = hm.hf(hm.to_tokens(text)).logits[0]
    return found


# -- the formula -----------------------------------------------------------------------------------------


def test_what_rose_is_lowered_by_alpha_times_its_rise_and_what_fell_is_left_alone() -> None:
    base = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    reinforced = torch.tensor([[3.5, 2.0, 1.0], [-9.0, 2.0, 1.0]])
    # 3 - 1.9 * .5 = 2.05 stays above 2; 3 - 2.1 * .5 = 1.95 does not; what fell to -9 keeps its 3.
    assert generic_labels(base, reinforced, straight(2), alpha=1.9).tolist() == [0, 0]
    assert generic_labels(base, reinforced, straight(2), alpha=2.1).tolist() == [1, 0]


def test_the_difference_is_taken_on_the_original_text_if_its_logits_are_given() -> None:
    base, reinforced = torch.tensor([[3.0, 2.0]]), torch.tensor([[4.0, 2.0]])
    assert generic_labels(base, reinforced, straight(1)).tolist() == [1]
    same = torch.tensor([[4.0, 0.0]])  # there nothing rose but the second
    assert generic_labels(base, reinforced, straight(1), base_original=same).tolist() == [0]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 8), st.floats(0, 9))
def test_without_a_rise_the_labels_are_the_base_models_own(seed: int, drift: int, alpha: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(7, 5, generator=generator)
    rows = torch.tensor([0, NONE, 2, 3, 6])
    fell = base[rows.clamp(min=0)] - drift
    labels = generic_labels(base, fell, Alignment(rows, 0, ()), alpha=alpha)
    assert labels.tolist() == [IGNORED if row == NONE else int(base[row].argmax()) for row in rows]
    other = torch.randn(5, 5, generator=generator)
    assert torch.equal(generic_labels(base, other, Alignment(rows, 0, ()), alpha=0), labels)


def test_beginnings_of_translations_are_lowered_once_from_the_row_where_they_appeared() -> None:
    base = torch.tensor([[9.0, 5.0, 0.0]]).repeat(4, 1)
    alignment = Alignment(torch.arange(4), 0, (Seen(2, "Tom"), Seen(1, "Al")))
    first = {"Tom": (0,), "Al": (2,)}

    def labels(**options: Any) -> list[int]:
        return generic_labels(base, base, alignment, first_tokens=first, **options).tolist()

    assert labels() == [0, 0, 1, 1]
    assert labels(lowered=3.9) == [0, 0, 0, 0] and labels(lowered=0) == [0, 0, 0, 0]
    # Two translations with one beginning: it is lowered by 5 from the first of them on, not by 10.
    first = {"Tom": (0,), "Al": (0,)}
    base = torch.tensor([[9.0, 5.0, 0.0], [9.0, 5.0, 0.0], [13.0, 5.0, 0.0], [9.9, 5.0, 0.0]])
    assert labels() == [0, 1, 0, 1]


def test_labels_change_no_tensor_and_half_precision_is_read_wide() -> None:
    base, reinforced = torch.tensor([[3.0, 2.0]]), torch.tensor([[3.3, 2.0]])
    before = base.clone()
    generic_labels(base, reinforced, straight(1), first_tokens={"a": (0,)})
    assert torch.equal(base, before)
    half = generic_labels(base.bfloat16(), reinforced.bfloat16(), straight(1))
    assert half.tolist() == [1]


# -- labels are targets of their own row: no shift ------------------------------------------------------


def test_labels_are_not_shifted_a_second_time() -> None:
    ids = torch.tensor([7, 3, 5, 2, 6])
    sure = 9.0 * torch.nn.functional.one_hot(ids[1:], 8).float()  # row t predicts token t + 1
    labels = generic_labels(sure, sure, straight(4))
    assert torch.equal(labels, ids[1:])


def test_a_text_relabelled_by_the_model_itself_keeps_its_likeliest_tokens_row_for_row(
    pair: tuple[HookedModel, HookedModel],
) -> None:
    hm, _ = pair
    found = relabel(hm, hm, TEXTS, {}, block=64, progress=False)
    for row, text in enumerate(TEXTS):
        said = logits(hm, text).argmax(-1)
        length = int(found.batch.lengths[row])
        assert torch.equal(found.batch.labels[row, : length - 1], said[:-1])
        assert (found.batch.labels[row, length - 1 :] == IGNORED).all()
    assert found.kept == 1.0 and found.repeated == 0


# -- both models together -------------------------------------------------------------------------------


def slow_labels(
    base: HookedModel, knows: HookedModel, text: str, *, alpha: float, context: str, lowered: float
) -> list[int]:
    """The definition, one row and one logit at a time."""
    found = Anchors(ANCHORS).translate(text)
    alignment = align(found, *tokens_of(base, [text, found.text]))
    minuend, reinforced, same = (
        found.tolist() for found in (logits(base, found.text), logits(knows, text), logits(base, text))
    )
    first = {word: first_tokens(base, word) for word in ANCHORS.values()}
    labels = []
    for row, partner in enumerate(alignment.rows.tolist()):
        scores = []
        for token in range(len(minuend[0])):
            compared = minuend[partner][token] if context == "translated" else same[row][token]
            score = minuend[partner][token] - alpha * max(0.0, reinforced[row][token] - compared)
            seen = [one.translation for one in alignment.seen if one.row <= row]
            if any(token in first[word] for word in seen):
                score = score - lowered
            scores.append(score)
        labels.append(IGNORED if partner == NONE else scores.index(max(scores)))
    return labels


@pytest.mark.parametrize("context", ["translated", "original"])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 5.0])
def test_relabelling_is_the_published_formula(
    pair: tuple[HookedModel, HookedModel], context: Any, alpha: float
) -> None:
    found = relabel(*pair, TEXTS, ANCHORS, alpha=alpha, delta_context=context, lowered=0.8, progress=False)
    for row, text in enumerate(TEXTS):
        expected = slow_labels(*pair, text, alpha=alpha, context=context, lowered=0.8)
        assert found.batch.labels[row, : len(expected)].tolist() == expected


def test_every_family_relabels_and_stays_as_it_was(hm: HookedModel) -> None:
    before = hm.identity
    found = relabel(hm, hm, TEXTS, ANCHORS, progress=False)
    assert hm.identity == before
    assert 0 < found.kept < 1 and found.batch.labels.shape == found.batch.tokens.shape
    assert torch.equal(found.batch.tokens, encode_text(hm, TEXTS).tokens)


def test_what_relabelling_did_can_be_looked_at(pair: tuple[HookedModel, HookedModel]) -> None:
    found = relabel(*pair, TEXTS, ANCHORS, progress=False)
    rows = list(found.rows())
    labels = found.batch.labels
    assert len(rows) == int((found.own != IGNORED).sum())
    assert sum(row.label is not None for row in rows) == int((labels != IGNORED).sum())
    assert "".join(row.text for row in rows if row.block == 0) == TEXTS[0]
    changed = [row.text != row.label for row in rows if row.label is not None]
    assert found.changed == pytest.approx(sum(changed) / len(changed))
    assert repr(found).startswith(f"Relabelled(2 blocks of {len(rows)} tokens: {found.kept:.0%} with a label")


def test_both_spellings_of_a_beginning_are_known_and_a_bare_space_is_none(llama: HookedModel) -> None:
    # " pin" opens with the token " p", "pin" with "p"; a space before "Al" is a token of its own.
    assert {llama.to_string([token]) for token in first_tokens(llama, "pin")} == {" p", "p"}
    assert {llama.to_string([token]) for token in first_tokens(llama, "Al")} == {"A"}


# -- blocks ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["Ed", "Zo", "spain", "ran.", "in", "é"]), min_size=3, max_size=60),
    st.integers(14, 40),
)
def test_blocks_hold_the_whole_text_fit_both_ways_and_cut_no_anchor(
    llama: HookedModel, words: list[str], size: int
) -> None:
    text = " ".join(words)
    found = blocks(llama, [text], anchors=ANCHORS, size=size)
    assert " ".join(found) == text
    known = Anchors(ANCHORS)
    for block in found:
        assert max(map(len, tokens_of(llama, [block, known.translate(block).text]))) <= size
    assert " ".join(known.translate(block).text for block in found) == known.translate(text).text


def test_text_without_spaces_is_cut_between_tokens_and_empty_text_is_left_out(llama: HookedModel) -> None:
    assert "".join(blocks(llama, ["a" * 50, " \n"], size=10)) == "a" * 50
    assert blocks(llama, ["a" * 200], size=512)[0] == "a" * 62  # the model has 64 positions


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0; give 0 or more, such as 5.0"),
        ({"lowered": float("nan")}, "lowered is nan; give 0 or more"),
        ({"delta_context": "both"}, "delta_context must be one of 'translated' or 'original'; not 'both'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_an_option_out_of_range_is_named(llama: HookedModel, options: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        relabel(llama, llama, TEXTS, ANCHORS, progress=False, **options)


@pytest.mark.usefixtures("unchecked")
def test_models_and_anchors_of_another_kind_are_refused(llama: HookedModel) -> None:
    with pytest.raises(
        FactError, match=r"the anchors are \['Ed'\]; give a mapping from the text's expressions"
    ):
        relabel(llama, llama, TEXTS, ["Ed"], progress=False)  # type: ignore[arg-type]
    with pytest.raises(FactError, match=r"the anchors are \[\]; give a mapping"):
        blocks(llama, TEXTS, anchors=[])  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"reinforced is None; give the edit that mu.whp.reinforce"):
        relabel(llama, None, TEXTS, ANCHORS, progress=False)  # type: ignore[arg-type]


def test_a_text_without_anything_to_learn_is_refused(llama: HookedModel) -> None:
    with pytest.raises(FactError, match="there is no text; give passages"):
        relabel(llama, llama, [" "], ANCHORS, progress=False)
    with pytest.raises(FactError, match="no block of 8 tokens holds 'Thomas the Great went'"):
        blocks(llama, ["Thomas the Great went"], anchors={"Thomas the Great": "Ed"}, size=8)
    unopened = HookedModel.from_hf(llama.hf, llama.tokenizer, prepend_bos=False)
    with pytest.raises(FactError, match="no token of the text keeps a label; give longer passages"):
        relabel(unopened, unopened, ["Ed"], {"Ed": "Al"}, progress=False)
