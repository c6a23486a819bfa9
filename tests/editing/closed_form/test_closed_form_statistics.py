"""Key statistics: the moment, its file, and everything that is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.key_twin import QUICK, TEXTS, WRITTEN, ids_of, known, read
from helpers.refusals import refused, stop_button
from helpers.small_facts import unchecked
from helpers.tiny_models import hf_model

from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.core.sites.localization import Localization
from mechunlearn.core.sites.site import Site
from mechunlearn.editing.closed_form.keys import KeyStatistics, key_statistics
from mechunlearn.editing.closed_form.mass_editing import memit
from mechunlearn.editing.closed_form.rank_one_edit import rome
from mechunlearn.errors import (
    DataError,
    EditError,
    FactError,
    IdentityWarning,
    LocalizationError,
    ModelError,
    SiteError,
)
from mechunlearn.models.hooked import HookedModel

BOTH = ("L0.mlp.out", "L1.mlp.out")
OUT = Site.parse(BOTH[0])
ONE = WRITTEN[:1]
NONE = Facts([Fact("Cy plays", "Cy", "a", split="retain")])


# -- the moment -----------------------------------------------------------------------------------------


def test_the_moment_is_the_mean_over_texts_run_one_at_a_time(hm: HookedModel) -> None:
    found = known(hm, *BOTH, batch_size=2)
    for layer, site in enumerate(BOTH):
        keys = np.concatenate([read(hm, layer, ids_of(hm, text))["keys"].numpy() for text in TEXTS])
        moment = found.moments[Site.parse(site)]
        assert found.tokens == len(keys) and moment.dtype == torch.float64
        np.testing.assert_allclose(moment.numpy(), keys.T @ keys / len(keys), atol=1e-5)


def test_transformerlens_reads_the_same_keys(llama: HookedModel) -> None:
    name = "blocks.1.mlp.out.hook_in"
    keys = [llama.run_with_cache(text, names_filter=name)[1][name][0].double() for text in TEXTS]
    rows = torch.cat(keys).numpy()
    found = known(llama, BOTH[1]).moments[Site.parse(BOTH[1])].numpy()
    np.testing.assert_allclose(found, rows.T @ rows / len(rows), atol=1e-6)


def test_texts_are_read_once_a_few_at_a_time_and_blank_ones_are_passed_over(llama: HookedModel) -> None:
    taken: list[int] = []

    def stream() -> Iterator[str]:
        for number, text in enumerate([TEXTS[0], "", " \n", *TEXTS[1:]]):
            taken.append(number)
            yield text

    found = key_statistics(llama, [OUT], stream(), batch_size=2, progress=False)
    assert taken == list(range(len(TEXTS) + 2)) and found.tokens == known(llama, BOTH[0]).tokens
    torch.testing.assert_close(found.moments[OUT], known(llama, BOTH[0]).moments[OUT])


def test_long_texts_are_cut(llama: HookedModel) -> None:
    short = key_statistics(llama, [OUT], TEXTS, max_tokens=4, progress=False)
    assert short.tokens == 4 * len(TEXTS)
    long = key_statistics(llama, [OUT], ["so " * 100], progress=False)
    assert long.tokens == llama.hf.config.max_position_embeddings


def test_a_localization_says_which_sites(llama: HookedModel) -> None:
    found = key_statistics(llama, Localization(BOTH), TEXTS, progress=False)
    assert [str(site) for site in found.moments] == list(BOTH)
    assert repr(found).startswith("KeyStatistics(L0.mlp.out, L1.mlp.out; ") and "ridge 0.001" in repr(found)


def test_the_ridge_has_no_unit(llama: HookedModel) -> None:
    found = known(llama, BOTH[0])
    keys = torch.randn(2, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scaled = replace(found, moments={OUT: 100 * found.moments[OUT]})
    torch.testing.assert_close(found.weighed(OUT, keys), 100 * scaled.weighed(OUT, keys))


def test_few_tokens_without_a_ridge_warn_and_cannot_be_solved(llama: HookedModel) -> None:
    with pytest.warns(UserWarning, match="tokens for 48 neurons: without a ridge the"):
        bare = key_statistics(llama, [OUT], TEXTS[:1], ridge=0, progress=False)
    with refused(EditError, "the key statistics of L0.mlp.out are singular", "ridge above 0", hm=llama):
        rome(llama, Localization([OUT]), WRITTEN[:1], statistics=bare, **QUICK)


def test_enough_tokens_need_no_ridge(llama: HookedModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = known(llama, BOTH[0], ridge=0)
    keys = torch.eye(48, dtype=torch.float64)[:2]
    torch.testing.assert_close(found.weighed(OUT, keys) @ found.moments[OUT], keys, atol=1e-6, rtol=0)


# -- the file -------------------------------------------------------------------------------------------


def test_statistics_survive_the_disk_bit_by_bit(llama: HookedModel, tmp_path: Path) -> None:
    found, path = known(llama, *BOTH, ridge=0.25), tmp_path / "kept" / "keys.safetensors"
    found.save(path)
    again = KeyStatistics.load(path)
    assert (again.tokens, again.made_on, again.ridge) == (found.tokens, llama.identity, 0.25)
    assert list(again.moments) == list(found.moments)
    assert all(torch.equal(again.moments[site], found.moments[site]) for site in found.moments)
    assert [file.name for file in path.parent.iterdir()] == ["keys.safetensors"]


def spoil(path: Path, how: str) -> None:
    """Damage a file of key statistics."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    blob = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(blob[: len(blob) // 2])
    elif how == "altered":
        path.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    elif how == "relabelled":
        with safe_open(str(path), framework="pt") as file:
            header = {**file.metadata(), "tokens": "1000000"}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        save_file(tensors, path, metadata=header)
    else:
        save_file({"weight": torch.ones(2)}, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "no key statistics in"),
        ("truncated", "is no whole key statistics .*: truncated or altered; make"),
        ("altered", "its hash is not that of its contents"),
        ("relabelled", "its hash is not that of its contents"),
        ("other", "has format None, not 'mechunlearn.key_statistics/2'"),
    ],
)
def test_a_damaged_file_is_refused(llama: HookedModel, tmp_path: Path, how: str, message: str) -> None:
    path = tmp_path / "keys.safetensors"
    known(llama, BOTH[0]).save(path)
    spoil(path, how)
    with pytest.raises(DataError, match=message):
        KeyStatistics.load(path)


def test_statistics_of_other_weights_warn(llama: HookedModel, tokenizer: Any, tmp_path: Path) -> None:
    other = HookedModel.from_hf(hf_model("llama", seed=1), tokenizer)
    known(other, BOTH[0]).save(tmp_path / "keys")
    loaded = KeyStatistics.load(tmp_path / "keys")
    with pytest.warns(IdentityWarning, match=f"with other weights .{other.identity}, not {llama.identity}"):
        memit(llama, Localization([OUT]), WRITTEN, statistics=loaded, **QUICK)
    memit(llama, Localization([OUT]), WRITTEN, statistics=replace(loaded, made_on=""), **QUICK)


# -- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "remedy"),
    [
        ("L1.mlp", "give L1.mlp.out, or train L1.mlp with mu.edit"),
        ("L1.mlp.in", "give L1.mlp.out, or train L1.mlp.in with mu.edit"),
        ("L1.mlp.gate", "give L1.mlp.out, or train L1.mlp.gate with mu.edit"),
        ("L1.mlp.neuron[7]", "give L1.mlp.out, or train L1.mlp.neuron[7] with mu.edit"),
        ("L1.attn", "give one such as L1.mlp.out, or train L1.attn with mu.edit"),
        ("L1.head[2]", "give one such as L1.mlp.out, or train L1.head[2] with mu.edit"),
        ("L0.kv[1]", "give one such as L0.mlp.out, or train L0.kv[1] with mu.edit"),
        ("embed", "give one such as L0.mlp.out, or train embed with mu.edit"),
        ("L1.resid_pre", "give L1.mlp.out"),
    ],
)
def test_only_the_matrix_out_of_an_mlp_has_a_closed_form(llama: HookedModel, site: str, remedy: str) -> None:
    said = f"{site} has no closed form", "the mlp.out of a layer", remedy
    with refused(SiteError, *said, hm=llama):
        key_statistics(llama, [OUT, site], TEXTS, progress=False)
    if Site.parse(site).has_weights:
        for method in (rome, memit):
            with refused(SiteError, *said, hm=llama):
                method(llama, Localization([site]), WRITTEN, statistics=known(llama, *BOTH), progress=False)


@pytest.mark.parametrize(
    ("sites", "texts", "options", "error", "said"),
    [
        ([], TEXTS, {}, LocalizationError, "no site is given; give the mlp.out of a layer"),
        (["L9.mlp.out"], TEXTS, {}, SiteError, "L9.mlp.out"),
        ([OUT], "it rains", {}, FactError, "texts is one string, 'it rains'; give a list of texts"),
        ([OUT], [TEXTS[0], 7], {}, FactError, "texts[1] is 7, not a string; give a list of texts"),
        ([OUT], [], {}, FactError, "there is no text to make key statistics of"),
        ([OUT], ["", " "], {}, FactError, "there is no text to make key statistics of"),
        ([OUT], TEXTS, {"ridge": -1.0}, EditError, "ridge is -1.0; give 0 or more"),
        ([OUT], TEXTS, {"max_tokens": 0}, EditError, "max_tokens must be above zero; not 0"),
        ([OUT], TEXTS, {"batch_size": 0}, EditError, "batch_size must be above zero; not 0"),
    ],
)
def test_statistics_of_nothing_are_refused(
    llama: HookedModel, sites: Any, texts: Any, options: Any, error: Any, said: str
) -> None:
    with unchecked(), refused(error, said, hm=llama):
        key_statistics(llama, sites, texts, progress=False, **options)


def cropped(statistics: KeyStatistics) -> KeyStatistics:
    """The statistics of a model with fewer neurons."""
    return replace(statistics, moments={s: m[:40, :40] for s, m in statistics.moments.items()})


@pytest.mark.parametrize(
    ("method", "sites", "facts", "options", "error", "said"),
    [
        (rome, BOTH, ONE, {}, LocalizationError, 'has 2; give one of them, as in Localization(["L0.mlp.out"'),
        (rome, BOTH, ONE, {}, LocalizationError, "spread the fact over all with memit"),
        (rome, BOTH[:1], WRITTEN, {}, FactError, "there are 2 to forget; give one, as in facts.forget[:1]"),
        (memit, (), WRITTEN, {}, LocalizationError, "no site is given"),
        (memit, BOTH, WRITTEN, {"weight": -1}, EditError, "weight is -1; give 0 or more"),
        (memit, BOTH, WRITTEN, {"null_space": 1e-30}, EditError, "of L0.mlp.out is below null_space=1e-30"),
        (memit, BOTH, WRITTEN, {"batch_size": 0}, EditError, "batch_size must be above zero"),
        (memit, BOTH, WRITTEN, {"prefixes": "So"}, FactError, "prefixes are given as a list: ['So']; not"),
        (memit, BOTH, WRITTEN, {"target": ["a"]}, FactError, "there are 1 targets for 2 facts; give one"),
        (memit, BOTH, WRITTEN, {"target": None}, FactError, "target is None; give a field's name such as"),
        (rome, BOTH[:1], ONE, {"target": "New"}, FactError, "target is 'New', which may be the field 'new'"),
        (rome, BOTH[:1], ONE, {"target": "foil "}, FactError, "give 'foil' for what each fact has there, or"),
        (memit, BOTH, WRITTEN, {"target": "foil"}, FactError, "has no foil; give it `foil=`"),
        (memit, BOTH, list(WRITTEN), {}, FactError, "the facts are a list; give them as Facts"),
        (memit, BOTH, NONE, {}, FactError, "the forget set is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(
    llama: HookedModel, method: Any, sites: Any, facts: Any, options: Any, error: Any, said: str
) -> None:
    statistics = known(llama, *BOTH)
    with unchecked(), refused(error, said, hm=llama):
        method(llama, Localization(sites), facts, statistics=statistics, **{**QUICK, **options})


def test_a_place_that_is_no_localization_is_refused(llama: HookedModel) -> None:
    statistics = known(llama, BOTH[0])
    with unchecked(), refused(LocalizationError, "give sites as a Localization, such as Loc", hm=llama):
        rome(llama, ["L0.mlp.out"], WRITTEN[:1], statistics=statistics)  # type: ignore[arg-type]


def test_statistics_that_do_not_fit_are_refused(llama: HookedModel) -> None:
    statistics, none = known(llama, BOTH[0]), None
    for method in (rome, memit):
        with unchecked(), refused(EditError, "the key statistics are None; make them with key_s", hm=llama):
            method(llama, Localization(BOTH[:1]), ONE, statistics=none, **QUICK)  # type: ignore[arg-type]
    with refused(EditError, "are of L0.mlp.out and say nothing of L1.mlp.out; make them with", hm=llama):
        memit(llama, Localization(BOTH), WRITTEN, statistics=statistics, **QUICK)
    with refused(EditError, "are of 40 neurons and this model has 48; make them anew", hm=llama):
        memit(llama, Localization(BOTH[:1]), WRITTEN, statistics=cropped(statistics), **QUICK)


def test_prefixes_need_a_token_to_begin_with(tokenizer: Any) -> None:
    import copy

    mute = copy.deepcopy(tokenizer)
    mute.bos_token = mute.eos_token = None
    hm = HookedModel.from_hf(hf_model("llama"), mute)
    with refused(ModelError, "neither a BOS nor an EOS token", "or prefixes=[] for the plain prompt", hm=hm):
        rome(hm, Localization([OUT]), WRITTEN[:1], statistics=known(hm, BOTH[0]), progress=False)


@pytest.mark.parametrize(
    "where", ["torch.optim.Adam.step", "torch.linalg.pinv", "mechunlearn.models.activations._read"]
)
def test_the_stop_button_leaves_the_model_as_it_was(
    llama: HookedModel, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    statistics = known(llama, *BOTH)
    monkeypatch.setattr(where, stop_button)
    for method, sites in ((rome, BOTH[:1]), (memit, BOTH)):
        with refused(KeyboardInterrupt, hm=llama):
            method(llama, Localization(sites), WRITTEN[: len(sites)], statistics=statistics, **QUICK)


def test_the_stop_button_leaves_a_model_that_is_being_measured_as_it_was(
    llama: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.Tensor.addmm_", stop_button)
    with refused(KeyboardInterrupt, hm=llama):
        known(llama, *BOTH)
