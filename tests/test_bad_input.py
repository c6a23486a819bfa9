"""Bad input, end to end: a message that names value, expectation and remedy, and nothing changed.

Places, hooks, facts and scores; files, and training with its interrupts, have tests of their own. What each
message says in every case is held by the tests of its module; here it is held that who uses the public names
gets it, and finds model, hooks, files and random state as they were.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.small_facts import FACTS, FORGET, made
from torch import Tensor

import mechunlearn as mu
from mechunlearn.errors import DataError, FactError, HookError, LocalizationError, ScoresError, SiteError

pytestmark = pytest.mark.usefixtures("unchecked")

MLP = mu.Localization(["L0.mlp"])
QUIET: dict[str, Any] = {"progress": False}


# -- places ---------------------------------------------------------------------------------------------


def test_an_unknown_site_is_refused_wherever_one_is_written(llama: mu.HookedModel, tmp_path: Path) -> None:
    said = "'L0.mpl' is not a site", "did you mean 'L0.mlp'?", "sites are written embed, L5.attn"
    for verb in (
        lambda: mu.Site.parse("L0.mpl"),
        lambda: mu.Localization(["L0.attn", "L0.mpl"]),
        lambda: MLP.isdisjoint(["L0.mpl"]),
        lambda: llama.hook_points("L0.mpl"),
    ):
        with refused(SiteError, *said, hm=llama):
            verb()
    MLP.save(tmp_path / "sites.json")
    typed = (tmp_path / "sites.json").read_text().replace("L0.mlp", "L0.mpl")
    (tmp_path / "sites.json").write_text(typed)
    with refused(DataError, *said, "sites.json", folder=tmp_path):
        mu.Localization.load(tmp_path / "sites.json")


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("L7.mlp", "its layers are L0 to L1"),
        ("L0.head[4]", "its heads are numbered 0 to 3"),
        ("L0.head[1].k", "its heads share keys and values in groups, here L0.kv[0]"),
        ("L1.mlp.neuron[48]", "its neurons are numbered 0 to 47"),
    ],
)
def test_a_site_of_another_models_shape_is_refused_by_everything_that_takes_sites(
    llama: mu.HookedModel, site: str, said: str
) -> None:
    place = mu.Localization([site])
    for verb in (
        lambda: mu.edit(llama, place, mu.objectives.Inject(), FACTS, **QUIET),
        lambda: llama.hook_points(site),
        lambda: llama.slices(place),
        lambda: llama.size(place),
        lambda: llama.fraction(place),
        lambda: llama.sites.sample(like=place, seed=0),
        lambda: llama.sites.fill(list(place), params=10**9),
        lambda: place.refine("neuron", llama.sites),
    ):
        with refused(SiteError, f"{site} is not a site of this model", said, "hm.sites", hm=llama):
            verb()


def test_strings_and_lists_are_not_taken_for_a_localization(llama: mu.HookedModel) -> None:
    for place in ("L0.mlp", ["L0.mlp"], {mu.Site.parse("L0.mlp")}):
        given: Any = place
        remedy = 'Localization(["L3.mlp"])'
        with refused(LocalizationError, f"the localization is {given!r}", remedy, hm=llama):
            mu.edit(llama, given, mu.objectives.Inject(), FACTS, **QUIET)
    strings: Any = ["L0.mlp"]
    with refused(SiteError, "'L0.mlp' is no Site; write Localization(['L0.mlp'])", hm=llama):
        llama.size(strings)


def test_an_empty_localization_is_refused_by_what_needs_a_place(llama: mu.HookedModel) -> None:
    nowhere = mu.Localization()
    with refused(LocalizationError, "the localization is empty", "hm.sites.mlps()", hm=llama):
        mu.edit(llama, nowhere, mu.objectives.Inject(), FACTS, **QUIET)
    with refused(LocalizationError, "like is an empty localization", "choose sites first", hm=llama):
        llama.sites.sample(like=nowhere, seed=0)


@pytest.mark.parametrize("site", ["L0.resid_pre", "L0.resid_mid", "L1.resid_post", "L1.pattern[2]"])
def test_a_localization_without_weights_is_refused(llama: mu.HookedModel, site: str) -> None:
    layer = site.partition(".")[0]
    said = f"{site} is a state of the model and holds no weights", f"such as {layer}.attn or {layer}.mlp"
    with refused(LocalizationError, *said):
        mu.Localization([site])
    with refused(LocalizationError, *said, hm=llama):
        llama.sites.isdisjoint([site])
    with refused(SiteError, f"{site} is a state and has no weights; name the component", hm=llama):
        llama.slices([mu.Site.parse(site)])


def test_overlapping_sites_are_refused_with_both_names(llama: mu.HookedModel) -> None:
    said = "L0.mlp and L0.mlp.neuron[7] share weights", '.refine("neuron", hm.sites)'
    neuron = mu.Localization(["L0.mlp.neuron[7]"])
    verbs: tuple[Callable[[], object], ...] = (
        lambda: mu.Localization(["L0.mlp", "L0.mlp.neuron[7]"]),
        lambda: MLP | neuron,
        lambda: llama.sites - neuron,
    )
    for verb in verbs:
        with refused(LocalizationError, *said, hm=llama):
            verb()
    with refused(LocalizationError, "L0.mlp.in and L0.mlp.neuron[7] share weights; keep one", hm=llama):
        made(llama, "L0.mlp.in") + made(llama, "L0.mlp.neuron[7]")
    remedied = MLP.refine("neuron", llama.sites) - neuron
    assert len(remedied) == len(llama.sites.neurons(0)) - 1


# -- hooks ----------------------------------------------------------------------------------------------


def test_a_hook_that_never_fires_is_an_error_and_leaves_no_hook(llama: mu.HookedModel) -> None:
    name = "hook_pos_embed"
    store: dict[str, Tensor] = {}
    said = f"hook '{name}' was requested and never fired in LlamaForCausalLM", "rotary positions"
    fires = mu.cache("hook_embed", store)
    for silent in (
        mu.cache(name, store),
        mu.patch(name, torch.zeros(1)),
        mu.noise(name, std=1.0, seed=0),
        mu.ablate(name),
        mu.steer(name, torch.zeros(1)),
    ):
        with refused(HookError, *said, hm=llama):
            llama.run_with_hooks("in pens", fwd_hooks=[fires, silent])
        with refused(HookError, *said, hm=llama), llama.hooks([silent]) as inside:
            inside("in pens")
        with refused(HookError, *said, hm=llama):
            llama.run_with_hooks("in pens", bwd_hooks=[silent], return_type="loss")
    with refused(HookError, *said, hm=llama):
        llama.run_with_cache("in pens", names_filter=["hook_embed", name])
    assert set(store) == {"hook_embed"}


def test_a_hook_of_a_layer_that_does_not_exist_is_refused_before_anything_runs(llama: mu.HookedModel) -> None:
    store: dict[str, Tensor] = {}
    said = "no hook 'blocks.7.hook_mlp_out'", "'blocks.1.hook_mlp_out'", "list(hm.hook_dict)"
    with refused(HookError, *said, hm=llama):
        llama.run_with_hooks(
            "in pens", fwd_hooks=[mu.cache("hook_embed", store), mu.cache("blocks.7.hook_mlp_out", store)]
        )
    assert store == {}


def test_a_hook_that_does_not_fit_what_flows_is_an_error_and_leaves_no_hook(llama: mu.HookedModel) -> None:
    with refused(HookError, "'hook_embed'", "(1, 2, 3)", "pass one row, or a row per prompt", hm=llama):
        llama.run_with_hooks("in pens", fwd_hooks=[mu.patch("hook_embed", torch.zeros(1, 2, 3))])
    with refused(HookError, "'hook_embed'", "99", "expected one position", hm=llama):
        llama.run_with_hooks("in pens", fwd_hooks=[mu.ablate("hook_embed", at=99)])


# -- facts ----------------------------------------------------------------------------------------------

WRONG = [
    ({"subject": "Bob"}, ("'Bo plays'", "does not contain its subject 'Bob'", "as it stands in the prompt")),
    ({"answer": "  "}, ("the answer of 'Bo plays' is empty", "give at least one word")),
    ({"foil": "golf"}, ("the foil of 'Bo plays' equals the answer 'golf'", "give another word, or None")),
    ({"new": "golf"}, ("the new of 'Bo plays' equals the answer 'golf'", "give another word, or None")),
]


@pytest.mark.parametrize(("field", "said"), WRONG)
def test_a_fact_that_contradicts_itself_is_refused_by_every_reader(
    tmp_path: Path, field: dict[str, str], said: tuple[str, ...]
) -> None:
    good = {"prompt": "Al plays", "subject": "Al", "answer": "polo"}
    record = {"prompt": "Bo plays", "subject": "Bo", "answer": "golf", **field}
    with refused(FactError, *said):
        mu.Fact(**record)  # type: ignore[arg-type]
    with refused(FactError, "record 2", *said):
        mu.Facts.from_records([good, record])
    with refused(FactError, "record 1", *said):
        mu.Facts.from_records([{**good, "others": [record]}])
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, (good, record))))
    header = list(record)
    lines = [",".join({**good, **dict.fromkeys(field, "")}[name] or good.get(name, "") for name in header)]
    (tmp_path / "facts.csv").write_text("\n".join([",".join(header), *lines, ",".join(record.values())]))
    for reader, name in ((mu.Facts.from_jsonl, "facts.jsonl"), (mu.Facts.from_csv, "facts.csv")):
        with refused(FactError, "record 2", *said, folder=tmp_path):
            reader(tmp_path / name)


def test_an_empty_forget_or_retain_set_is_refused_by_what_needs_it(llama: mu.HookedModel) -> None:
    edit = made(llama, "L0.mlp")
    no_forget, no_retain = FACTS.retain + FACTS.test, FACTS.forget + FACTS.test
    forget = "the forget set is empty (0 forget, 1 retain, 1 test", "give at least one Fact(..., split="
    with refused(FactError, *forget, hm=llama):
        mu.edit(llama, MLP, mu.objectives.Inject(), no_forget, **QUIET)
    with refused(FactError, *forget, hm=llama):
        mu.audit(llama, edit, no_forget, attacks=(), **QUIET)
    with refused(FactError, "the retain set and it is empty", "Fact(..., split='retain')", hm=llama):
        mu.edit(llama, MLP, mu.objectives.Inject(), no_retain, **QUIET)
    plain: Any = list(FACTS)
    with refused(FactError, "the facts are a list", "Facts([...])", hm=llama):
        mu.edit(llama, MLP, mu.objectives.Inject(), plain, **QUIET)
    for localizer in (mu.causal_trace, mu.attribution, mu.fact_lookup, mu.probe):
        with refused(FactError, "there are no facts to encode; give at least one", hm=llama):
            localizer(llama, no_forget.forget, **QUIET)


def test_a_fact_in_two_splits_is_refused_however_they_meet(tmp_path: Path) -> None:
    kept = FORGET[0].replace(split="retain")
    other_words = FORGET[0].replace(split="retain", prompt="Who is Bo? A", train=())
    with refused(FactError, "'Bo plays' stands in both 'forget' and 'retain'; keep it in one"):
        mu.Facts([*FORGET, kept])
    with refused(FactError, "'Who is Bo? A' stands in both 'forget' and 'retain'; keep it in one"):
        mu.Facts([*FORGET, other_words])
    with refused(FactError, "'Bo plays' stands in both 'retain' and 'forget'; keep it in one"):
        mu.Facts([kept]) + mu.Facts(FORGET)
    records = [fact.to_record() for fact in (FORGET[0], kept)]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, records)))
    with refused(FactError, "stands in both 'forget' and 'retain'", folder=tmp_path):
        mu.Facts.from_jsonl(tmp_path / "facts.jsonl")


# -- scores ---------------------------------------------------------------------------------------------


def test_scores_of_states_draw_and_select_nothing(llama: mu.HookedModel) -> None:
    said = "scores of states draw and compare but select nothing", "sites='mlp'"
    traced = mu.causal_trace(llama, FACTS.forget, sites="resid_post", corrupt=mu.Noise(samples=1), **QUIET)
    probed = mu.probe(llama, FACTS, folds=2, control=False, **QUIET).sel(metric="accuracy")
    for scores, first in ((traced, "L0.resid_post"), (probed, "L0.resid_pre")):
        assert scores.heatmap().data
        for options in ({"k": 1}, {"params": 0.5}, {"params": 0.5, "fill": llama.sites}):
            asked: dict[str, Any] = options
            with refused(ScoresError, *said, f"{first} has no weights", hm=llama):
                scores.top(**asked)
        with refused(ScoresError, *said, f"{first} has no weights", hm=llama):
            scores.above(0.0)
