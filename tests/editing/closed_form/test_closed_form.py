"""ROME, MEMIT and AlphaEdit against least squares in numpy, on six families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.key_twin import PREFIXES, QUICK, WRITTEN, ids_of, known, matrix, means, read
from helpers.small_facts import bits, weights
from helpers.tiny_models import FAMILIES, hf_model, memory_tokenizer
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.editing.closed_form.keys import KeyStatistics, key_statistics
from mechunlearn.editing.closed_form.mass_editing import memit
from mechunlearn.editing.closed_form.rank_one_edit import rome
from mechunlearn.editing.closed_form.solving import solve
from mechunlearn.editing.closed_form.values import FoundValues, ValueSearch
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.history import History
from mechunlearn.errors import IdentityWarning
from mechunlearn.models.hooked import HookedModel

ONE = WRITTEN[:1]
BOTH = ("L0.mlp.out", "L1.mlp.out")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Tensor]:
    """Let the search for values find what we say, so that the algebra after it stands alone."""

    def plant(count: int) -> Tensor:
        deltas = torch.randn(count, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        for name in ("rank_one_edit", "mass_editing"):
            monkeypatch.setattr(
                f"mechunlearn.editing.closed_form.{name}.find_values",
                lambda *_, **__: FoundValues(deltas, History()),
            )
        return deltas

    return plant


def moment(statistics: KeyStatistics, layer: int) -> np.ndarray:
    """C with its ridge."""
    raw = statistics.moments[Site("mlp", layer, part="out")].numpy()
    inner: np.ndarray = raw + statistics.ridge * np.diag(raw).mean() * np.eye(len(raw))
    return inner


def change(hm: HookedModel, edit: Edit, layer: int) -> np.ndarray:
    """What an edit did to a layer's matrix, as the model computes it."""
    moved: np.ndarray = matrix(edit.apply(hm), layer) - matrix(hm, layer)
    return moved


@cache
def built(family: str) -> HookedModel:
    """A tiny model in float64."""
    return HookedModel.from_hf(hf_model(family), memory_tokenizer()).to(torch.float64)


# -- ROME -----------------------------------------------------------------------------------------------


def test_rome_moves_the_output_at_the_key_to_the_value_in_any_family(
    hm: HookedModel, planted: Callable[[int], Tensor]
) -> None:
    delta = planted(1)[0].numpy()
    edit = rome(hm, Localization([BOTH[1]]), ONE, statistics=known(hm, BOTH[1]), **QUICK)
    before, after = (means(m, 1, ONE, PREFIXES) for m in (hm, edit.apply(hm)))
    np.testing.assert_allclose(after["keys"], before["keys"], atol=1e-6)
    np.testing.assert_allclose(after["values"][0], before["values"][0] + delta, atol=1e-5)


def test_rome_is_least_squares_under_the_constraint(planted: Callable[[int], Tensor]) -> None:
    """Minimise tr(Δ C Δᵀ) subject to Δ k = δ, by the equations of Karush, Kuhn and Tucker."""
    delta, wide = planted(1)[0].numpy(), built("llama")
    statistics = known(wide, BOTH[0])
    edit = rome(wide, Localization([BOTH[0]]), ONE, statistics=statistics, **QUICK)
    key, inner = means(wide, 0, ONE, PREFIXES)["keys"][0], moment(statistics, 0)
    system = np.block([[2 * inner, key[:, None]], [key[None], np.zeros((1, 1))]])
    rows = np.linalg.solve(system, np.vstack([np.zeros((len(key), len(delta))), delta[None]]))[: len(key)]
    np.testing.assert_allclose(change(wide, edit, 0), rows.T, atol=1e-6)


def test_memit_of_one_fact_in_one_layer_without_weight_is_rome(
    llama: HookedModel, planted: Callable[[int], Tensor]
) -> None:
    planted(1)
    place, statistics = Localization([BOTH[1]]), known(llama, BOTH[1])
    first = rome(llama, place, ONE, statistics=statistics, **QUICK)
    second = memit(llama, place, ONE, statistics=statistics, weight=0, **QUICK)
    torch.testing.assert_close(first.deltas[0].values, second.deltas[0].values)


# -- MEMIT ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [BOTH[1:], BOTH])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma2"])
def test_without_weight_memit_moves_the_stream_to_z(
    family: str, sites: Sequence[str], planted: Callable[[int], Tensor]
) -> None:
    deltas, wide = planted(2).numpy(), built(family)
    edit = memit(wide, Localization(sites), WRITTEN, statistics=known(wide, *sites), weight=0, **QUICK)
    before, after = (means(m, 1, WRITTEN, PREFIXES)["stream"] for m in (wide, edit.apply(wide)))
    np.testing.assert_allclose(after, before + deltas, atol=1e-5)


@pytest.mark.parametrize(("sites", "share"), [(BOTH[1:], 1e-4), (BOTH, 0.3)])
def test_through_a_norm_one_layer_reaches_z_and_several_come_near(
    tokenizer: Any, sites: Sequence[str], share: float, planted: Callable[[int], Tensor]
) -> None:
    gemma, deltas = HookedModel.from_hf(hf_model("gemma2"), tokenizer), planted(2).float()
    norm = gemma.hf.model.layers[1].post_feedforward_layernorm
    options = {**QUICK, "prefixes": (), "statistics": known(gemma, *sites), "weight": 0}
    edit = memit(gemma, Localization(sites), WRITTEN, **options)
    before, after = (means(m, 1, WRITTEN, ()) for m in (gemma, edit.apply(gemma)))
    values = torch.from_numpy(before["values"]).float()
    with torch.no_grad():
        moved = (norm(values + deltas) - norm(values)).numpy()
    left = np.linalg.norm(before["stream"] + moved - after["stream"], axis=1)
    assert (left < share * np.linalg.norm(moved, axis=1)).all()


@pytest.mark.parametrize("weight", [0.5, 200.0])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_memit_is_ridge_regression_layer_by_layer(
    family: str, weight: float, planted: Callable[[int], Tensor]
) -> None:
    """Least squares on the facts and on √λ L of C = L Lᵀ, from the lowest layer up on what is changed."""
    deltas, wide = planted(2).numpy(), built(family)
    statistics = known(wide, *BOTH)
    edit = memit(wide, Localization(BOTH), WRITTEN, statistics=statistics, weight=weight, **QUICK)
    wanted, work = means(wide, 1, WRITTEN, PREFIXES)["stream"] + deltas, wide
    for layer, left in ((0, 2), (1, 1)):
        keys = means(work, layer, WRITTEN, PREFIXES)["keys"]
        missing = (wanted - means(work, 1, WRITTEN, PREFIXES)["stream"]) / left
        rows = np.vstack([keys, np.sqrt(weight) * np.linalg.cholesky(moment(statistics, layer)).T])
        asked = np.vstack([missing, np.zeros((keys.shape[1], 32))])
        expected = np.linalg.lstsq(rows, asked, rcond=None)[0].T
        np.testing.assert_allclose(change(wide, edit, layer), expected, atol=1e-6)
        done = [d for d in edit.deltas if f".{layer}.mlp" in d.slice.name]
        work = Edit(tuple(done), Localization(), {}).apply(work)


def test_facts_of_one_subject_get_the_mean_of_what_they_ask(planted: Callable[[int], Tensor]) -> None:
    deltas, wide = planted(3).numpy(), built("llama")
    facts = Facts([Fact(f"Bo {verb}", "Bo", "golf", new="judo") for verb in ("plays", "eats")]) + WRITTEN[1:]
    statistics = known(wide, BOTH[1])
    edit = memit(wide, Localization([BOTH[1]]), facts, statistics=statistics, weight=0, **QUICK)
    before, after = (means(m, 1, facts, PREFIXES)["stream"] for m in (wide, edit.apply(wide)))
    expected = np.stack([deltas[:2].mean(0), deltas[:2].mean(0), deltas[2]])
    np.testing.assert_allclose(after - before, expected, atol=1e-5)


def test_many_facts_may_share_fewer_directions_than_there_are_facts() -> None:
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    wanted = torch.tensor([[1.0], [2.0], [0.0]], dtype=torch.float64)
    expected = np.linalg.lstsq(keys.numpy(), wanted.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(solve(keys, keys, wanted).numpy(), expected, atol=1e-12)


# -- the null space -------------------------------------------------------------------------------------


def few(hm: HookedModel, *sites: str) -> tuple[KeyStatistics, list[str]]:
    """Statistics of fewer tokens than neurons, which leave a true null space."""
    texts = ["it rains in May", "the sun is up"]
    return key_statistics(hm, sites, texts, progress=False), texts


def test_in_the_null_space_what_is_retained_does_not_move(
    hm: HookedModel, planted: Callable[[int], Tensor]
) -> None:
    deltas, wide = planted(2).numpy(), hm.to(torch.float64)
    statistics, texts = few(wide, BOTH[1])
    options = {**QUICK, "prefixes": ()}
    edit = memit(
        wide, Localization([BOTH[1]]), WRITTEN, statistics=statistics, null_space=1e-9, weight=0, **options
    )
    after = edit.apply(wide)
    for text in texts:
        before, kept = (read(m, 1, ids_of(wide, text))["values"].numpy() for m in (wide, after))
        np.testing.assert_allclose(kept, before, atol=1e-6)
    if hm.arch.architecture != "Gemma2ForCausalLM":
        moved = means(after, 1, WRITTEN, ())["stream"] - means(wide, 1, WRITTEN, ())["stream"]
        np.testing.assert_allclose(moved, deltas, atol=1e-5)


def test_the_null_space_solution_is_the_published_one(planted: Callable[[int], Tensor]) -> None:
    """``(P K Kᵀ + L2·1)⁻¹ P K Rᵀ``, as the authors write it, P from a singular value decomposition."""
    deltas, wide, threshold = planted(2).numpy(), built("llama"), 2e-2
    statistics = known(wide, BOTH[1])
    inner = statistics.moments[Site.parse(BOTH[1])].numpy()
    left, sizes, _ = np.linalg.svd(inner)
    assert 5 < (sizes < threshold).sum() < 43
    projector = left[:, sizes < threshold] @ left[:, sizes < threshold].T
    keys = means(wide, 1, WRITTEN, PREFIXES)["keys"].T
    for weight, size in ((None, 10.0), (0.1, 0.1)):
        edit = memit(
            wide,
            Localization([BOTH[1]]),
            WRITTEN,
            statistics=statistics,
            null_space=threshold,
            weight=weight,
            **QUICK,
        )
        expected = np.linalg.solve(projector @ keys @ keys.T + size * np.eye(48), projector @ keys @ deltas)
        np.testing.assert_allclose(change(wide, edit, 1), expected.T, atol=1e-6)


# -- what moves, and what does not ----------------------------------------------------------------------


@pytest.mark.parametrize("method", [rome, memit])
def test_the_chosen_matrices_change_and_nothing_else_does(hm: HookedModel, method: Any) -> None:
    sites = BOTH[:1] if method is rome else BOTH
    before = weights(hm)
    edit: Edit = method(hm, Localization(sites), WRITTEN[: len(sites)], statistics=known(hm, *sites), **QUICK)
    chosen = {part.name for part in hm.slices(edit.localization) if part.name.endswith("weight")}
    after = {name: bits(p) for name, p in edit.apply(hm).params.items()}
    assert weights(hm) == before
    assert {name for name, blob in after.items() if blob != before[name]} == chosen
    assert {delta.slice.name for delta in edit.deltas} == set(edit.shapes) == chosen


@pytest.mark.parametrize("method", [rome, memit])
def test_the_result_is_an_ordinary_edit(llama: HookedModel, tmp_path: Path, method: Any) -> None:
    place = Localization([BOTH[1]], source="by hand")
    edit: Edit = method(llama, place, ONE, statistics=known(llama, BOTH[1]), **QUICK)
    edit.save_pretrained(tmp_path)
    again = Edit.from_pretrained(tmp_path)
    assert again.apply(llama).identity == edit.apply(llama).identity != llama.identity
    assert again.localization.source == "by hand" and again.made_on == llama.identity
    assert again.recipe is None and again.step == again.history.step == len(again.history) == 3
    assert set(again.history[0]) == {"step", "answer", "essence", "decay"}


def test_a_second_edit_is_made_on_the_first(llama: HookedModel) -> None:
    place, statistics = Localization([BOTH[1]]), known(llama, BOTH[1])
    first = rome(llama, place, ONE, statistics=statistics, **QUICK)
    changed = first.apply(llama)
    with pytest.warns(IdentityWarning, match="the key statistics were made on a model with other weights"):
        second = rome(changed, place, WRITTEN[1:], statistics=statistics, **QUICK)
    assert second.made_on == changed.identity
    assert second.apply(changed).identity not in (changed.identity, llama.identity)


def test_a_model_in_bfloat16_gets_a_delta_in_float32(llama: HookedModel) -> None:
    half = llama.to(torch.bfloat16)
    edit = memit(half, Localization(BOTH), WRITTEN, statistics=known(half, *BOTH), weight=1.0, **QUICK)
    assert {delta.values.dtype for delta in edit.deltas} == {torch.float32}
    assert edit.apply(half).identity != half.identity


# -- repeating ------------------------------------------------------------------------------------------


def test_the_seed_of_the_prefixes_decides_every_bit(llama: HookedModel) -> None:
    place, statistics, state = Localization([BOTH[1]]), known(llama, BOTH[1]), torch.get_rng_state()
    made = [
        bits(
            rome(
                llama,
                place,
                ONE,
                statistics=statistics,
                seed=seed,
                search=ValueSearch(steps=2),
                progress=False,
            )
            .deltas[0]
            .values
        )
        for seed in (0, 0, 1)
    ]
    assert made[0] == made[1] != made[2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_notebook_without_gradients_solves_the_same(llama: HookedModel, mode: Any) -> None:
    place, statistics = Localization(BOTH), known(llama, *BOTH)
    plain = memit(llama, place, WRITTEN, statistics=statistics, **QUICK)
    with mode():
        same = memit(llama, place, WRITTEN, statistics=known(llama, *BOTH), **QUICK)
    for one, other in zip(plain.deltas, same.deltas, strict=True):
        assert bits(one.values) == bits(other.values)
