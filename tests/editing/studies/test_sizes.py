"""The size curve of an edit says what so many of its weights achieve, and where they lie."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_facts import FACTS, FORGET, RETAIN, TEST, TEXT, made, weights
from helpers.tiny_models import tiny_llama
from jaxtyping import Float
from torch import Tensor

import mechunlearn as mu
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.statistics import bootstrap_interval
from mechunlearn.editing import objectives
from mechunlearn.editing.edits.algebra import Delta
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.recipes import Recipe
from mechunlearn.editing.studies.sizes import SizeCurve, edit_size_curve
from mechunlearn.errors import EditError, FactError, IdentityWarning, SiteError
from mechunlearn.models.hooked import HookedModel

PLACE = ("L0.mlp", "L1.attn")
COUNTS = (0, 100, 1000, 5000)


def curve(edit: Edit, hm: HookedModel | None = None, facts: Facts = FACTS, **options: Any) -> SizeCurve:
    options = {"counts": COUNTS, "progress": False, **options}
    return edit_size_curve(hm or tiny_llama(), edit, facts, **options)


def masked(hm: HookedModel, *sites: str, seed: int = 0) -> tuple[Edit, dict[str, Tensor]]:
    """A mask of random weights, half of them left alone, as the deltas of an edit and by parameter."""
    random = torch.Generator().manual_seed(seed)
    edit, masks = made(hm, *sites), {}
    deltas = []
    for delta in edit.deltas:
        mask = torch.rand(delta.values.shape, generator=random)
        mask = torch.where(torch.rand(mask.shape, generator=random) < 0.5, torch.ones(()), mask)
        own = delta.slice.of(hm.params[delta.slice.name].detach())
        deltas.append(Delta(delta.slice, (mask - 1) * own))
        masks[delta.slice.name] = mask
    return replace(edit, deltas=tuple(deltas)), masks


@torch.no_grad()
def by_hand(hm: HookedModel, change: dict[str, Tensor], facts: Facts) -> dict[str, list[float]]:
    """What a model with other weights says, asked question by question."""
    model = hm.fork(change)
    found: dict[str, list[float]] = {"old answer": [], "new answer": [], "maintained": []}
    for name, split in (("old answer", facts.forget), ("maintained", facts.maintained)):
        for fact in split:
            asked = [mu.score(model, [question]) for question in fact.phrasings("validation") or [fact]]
            found[name].append(float(np.mean([outcome.correct[0] for outcome in asked])))
            if name == "old answer":
                found["new answer"].append(float(np.mean([outcome.says_new[0] for outcome in asked])))
    texts = [model.to_tokens(text)[0] for text in facts.test_text]
    logits = [model(tokens[None])[0, :-1] for tokens in texts]
    pairs = list(zip(logits, (tokens[1:] for tokens in texts), strict=True))
    found["text"] = [float((guess.argmax(-1) == ids).float().mean()) for guess, ids in pairs]
    found["text loss"] = [float(torch.nn.functional.cross_entropy(guess, ids)) for guess, ids in pairs]
    return found


OPTIONS = tuple("abcdefghij")
GUESSES = Facts(
    [
        *(replace(fact, answer="a", new="b", foil=None, options=OPTIONS) for fact in FORGET),
        *(Fact(f"So {name} is", name, letter, options=OPTIONS, split="test")
          for name, letter in zip(("Ed", "Flo", "Gus", "Hal"), "cdef", strict=True)),
    ],
    text=TEXT,
)  # fmt: skip


def agree(found: SizeCurve, at: int, expected: dict[str, list[float]]) -> None:
    assert list(found.values) == list(expected)
    for name, values in expected.items():
        assert found.values[name][at].tolist() == pytest.approx(values, abs=1e-5), name


def test_at_every_count_the_largest_deltas_are_kept_and_asked_about() -> None:
    edit = made(tiny_llama(), *PLACE).scale(5)
    found = curve(edit, facts=GUESSES)
    whole = edit.to_task_vector()
    flat = torch.cat([tensor.flatten() for tensor in whole.values()]).numpy()
    order = np.argsort(-np.abs(flat), kind="stable")
    said = []
    for at, count in enumerate(COUNTS):
        kept = np.zeros_like(flat)
        kept[order[:count]] = flat[order[:count]]
        parts = torch.split(torch.tensor(kept), [tensor.numel() for tensor in whole.values()])
        change = {
            name: tiny_llama().params[name].detach() + part.reshape(whole[name].shape)
            for name, part in zip(whole, parts, strict=True)
        }
        expected = by_hand(tiny_llama(), change, GUESSES)
        agree(found, at, expected)
        said.append(expected)
    assert found.weights == found.counts == COUNTS and found.by == "kept"
    assert len({str(expected) for expected in said}) == len(said)
    assert any(
        0 < np.mean(expected["maintained"]) or np.mean(expected["old answer"]) > 0 for expected in said
    )


def test_the_smallest_masks_are_set_to_zero_and_all_others_to_one() -> None:
    edit, masks = masked(tiny_llama(), *PLACE)
    available = int(sum((mask < 1).sum() for mask in masks.values()))
    counts = (0, 700, available, available + 5)
    found = curve(edit, facts=GUESSES, by="zeroed", counts=counts)
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    order = flat.argsort(stable=True)
    for at, count in enumerate(counts):
        discrete = torch.ones_like(flat)
        discrete[order[: min(count, available)]] = 0
        parts = torch.split(discrete, [mask.numel() for mask in masks.values()])
        change = {
            name: tiny_llama().params[name].detach() * part.reshape(masks[name].shape)
            for name, part in zip(masks, parts, strict=True)
        }
        agree(found, at, by_hand(tiny_llama(), change, GUESSES))
    assert found.counts == counts and found.weights == (0, 700, available, available)


def test_a_mask_that_was_fitted_is_zeroed_and_any_other_edit_is_kept() -> None:
    edit, _ = masked(tiny_llama(), "L0.mlp")
    fitted = replace(edit, recipe=Recipe(objectives.WeightMask()))
    assert curve(fitted, counts=[3]).by == "zeroed"
    assert curve(replace(edit, recipe=Recipe(objectives.Inject())), counts=[3]).by == "kept"
    assert curve(fitted, counts=[3], by="kept").by == "kept"


def test_masks_in_half_precision_are_still_masks() -> None:
    half = tiny_llama().to(torch.bfloat16)
    edit, masks = masked(half, "L0.mlp")
    wide = tuple(
        Delta(d.slice, (masks[d.slice.name] - 1) * d.slice.of(half.params[d.slice.name].detach()).float())
        for d in edit.deltas
    )
    found = curve(replace(edit, deltas=wide), half, by="zeroed", counts=[10])
    assert found.weights == (10,)


def test_the_share_of_the_chosen_weights_in_each_component_is_reported() -> None:
    edit = made(tiny_llama(), "L0.mlp", "L1.attn", "L1.mlp")
    lookup, extraction = Localization(["L0.mlp"]), Localization(["L1.head[2]", "L1.mlp.neuron[3]"])
    found = curve(edit, lookup=lookup, extraction=extraction)
    assert np.isnan(found.shares["lookup"][0]) and np.isnan(found.shares["extraction"][0])
    for at, count in enumerate(COUNTS[1:], start=1):
        kept = edit.prune(count).to_task_vector()
        for name, place in (("lookup", lookup), ("extraction", extraction)):
            inside = sum(
                int(part.of(kept[part.name]).count_nonzero())
                for part in tiny_llama().slices(place)
                if part.name in kept
            )
            assert found.shares[name][at] == pytest.approx(inside / count)
    everything = curve(edit, counts=[10], lookup=tiny_llama().sites, extraction=Localization())
    assert everything.shares["lookup"].tolist() == [1] and everything.shares["extraction"].tolist() == [0]


def test_counts_default_to_none_all_and_halves_of_all() -> None:
    edit = made(tiny_llama(), "L0.mlp.out")
    found = curve(edit, counts=None)
    assert found.counts == found.weights == (0, 6, 12, 24, 48, 96, 192, 384, 768, 1536)
    assert curve(edit, counts=[9, 3, 9]).counts == (3, 9)
    assert curve(Edit((), Localization()), counts=None).counts == (0,)


def test_facts_are_asked_in_the_phrasings_that_are_wanted() -> None:
    edit = made(tiny_llama(), *PLACE).scale(5)
    for phrasing in ("train", "held_out"):
        (row,) = curve(edit, facts=GUESSES, counts=[5000], phrasing=phrasing).values["old answer"]
        model = edit.prune(5000).apply(tiny_llama())
        expected = [
            float(mu.score(model, fact.phrasings(phrasing) or fact.phrasings("train")).correct.mean())
            for fact in GUESSES.forget
        ]
        assert row.tolist() == expected


def test_what_there_is_nothing_to_ask_about_is_left_out() -> None:
    bare = Facts([replace(FORGET[0], new=None)])
    assert list(curve(made(tiny_llama(), "L0.mlp"), facts=bare).values) == ["old answer"]
    some = Facts([replace(FORGET[0], new=None), FORGET[1], *TEST])
    found = curve(made(tiny_llama(), "L0.mlp"), facts=some).values
    assert list(found) == ["old answer", "new answer", "maintained"]
    assert [table.shape[1] for table in found.values()] == [2, 1, 1]


def test_the_table_has_means_with_intervals_over_facts() -> None:
    found = curve(made(tiny_llama(), *PLACE).scale(5), facts=GUESSES, lookup=Localization(["L0.mlp"]))
    frame = found.to_frame(seed=3)
    assert list(frame.columns) == ["measure", "count", "weights", "mean", "low", "high", "n"]
    assert list(frame["measure"].unique()) == [*found.values, "in lookup"]
    for _, row in frame[frame["measure"] == "maintained"].iterrows():
        units = found.values["maintained"][COUNTS.index(row["count"])]
        interval = bootstrap_interval(units, seed=3)
        assert (row["mean"], row["low"], row["high"]) == (interval.mean, interval.low, interval.high)
        assert row["n"] == 4
    shares = frame[frame["measure"] == "in lookup"]
    assert shares["low"].isna().all() and shares["n"].tolist() == list(COUNTS)


def test_the_curve_draws_itself_without_the_loss() -> None:
    found = curve(made(tiny_llama(), *PLACE).scale(5), facts=GUESSES, lookup=Localization(["L0.mlp"]))
    drawn = found.plot()
    names = [trace.name for trace in drawn.data if trace.name]
    assert names == ["old answer", "new answer", "maintained", "text", "in lookup"]
    assert list(drawn.layout.xaxis.ticktext) == ["0", "100", "1,000", "5,000"]
    assert drawn.layout.xaxis.title.text == "weights kept"
    shown = found._repr_mimebundle_()
    assert shown["text/plain"] == (
        "SizeCurve(4 counts up to 5,000 weights kept; "
        "old answer, new answer, maintained, text, text loss, in lookup)"
    )


def test_measuring_leaves_the_model_as_it_was() -> None:
    before = weights(tiny_llama())
    curve(made(tiny_llama(), *PLACE))
    assert weights(tiny_llama()) == before


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_measured_is_refused(llama: HookedModel) -> None:
    edit = made(llama, "L0.mlp")

    def refused(error: type[Exception], said: str, given: Edit, **options: Any) -> None:
        before = weights(llama)
        with pytest.raises(error, match=said):
            curve(given, llama, **options)
        assert weights(llama) == before

    refused(EditError, "the edit is no mask of this model's weights: in .*by='kept'", edit, by="zeroed")
    refused(EditError, "by must be one of 'kept' or 'zeroed'; not 'masked'", edit, by="masked")
    refused(
        EditError, r"counts are \[5, -1\]; give whole numbers of weights, 0 or more", edit, counts=[5, -1]
    )
    for counts in ([], [0.5], 5, "5"):
        refused(EditError, f"counts are {re.escape(repr(counts))}; give whole numbers", edit, counts=counts)
    refused(EditError, "which this model does not have", replace(edit, shapes={"w": (2,)}))
    refused(FactError, "the forget set is empty", edit, facts=Facts(RETAIN))
    refused(SiteError, "L9.mlp is not a site of this model", edit, lookup=Localization(["L9.mlp"]))
    wanted = "phrasing must be one of 'train', 'validation' or 'held_out'; not 'held-out'"
    refused(FactError, wanted, edit, phrasing="held-out")


def test_an_edit_of_another_model_is_measured_with_a_warning() -> None:
    with pytest.warns(IdentityWarning) as caught:
        curve(made(tiny_llama(), "L0.mlp", made_on="elsewhere"))
    assert len(caught) == 1


def test_a_curve_of_values_given_by_hand_knows_nothing_of_models() -> None:
    values: dict[str, Float[np.ndarray, "count unit"]] = {"old answer": np.array([[1.0, 1.0], [0.0, 1.0]])}
    by_hand = SizeCurve("zeroed", (0, 5), (0, 4), values, {}, "held_out", title="By hand")
    assert by_hand.to_frame()[["count", "weights", "mean"]].values.tolist() == [[0, 0, 1.0], [5, 4, 0.5]]
    assert by_hand.plot().layout.title.text == "By hand"
