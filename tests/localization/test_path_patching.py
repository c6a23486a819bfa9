"""Path patching against its definition, TransformerLens, and a model whose mechanism is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.patching_twin import AllLogits, FactTwin, Prompt, logits, ragged
from helpers.patching_twin import full_softmax as full_softmax
from helpers.path_twin import PAIRS, SENDERS, Setup, Twin, deep, receiver_sets
from helpers.planted import planted_facts, planted_model
from helpers.tiny_facts import tiny_facts, unchecked
from helpers.tiny_models import FAMILIES, VOCAB
from torch import Tensor
from transformer_lens.patching import get_act_patch_direct_path

from mechunlearn.core.sites.site import Site
from mechunlearn.errors import ScoresError, SiteError
from mechunlearn.localization.engine import block_functions as engine_parts
from mechunlearn.localization.engine.block_functions import BlockFunctions
from mechunlearn.localization.engine.cached_run import cached_run
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.patching.corruption import Noise
from mechunlearn.localization.path_patching.hooks import path_hooks
from mechunlearn.localization.path_patching.patch import path_patch
from mechunlearn.localization.path_patching.paths import Paths
from mechunlearn.localization.path_patching.sweep import PathTask, path_sweep
from mechunlearn.localization.subject_swaps import swap_subjects
from mechunlearn.models.activations import activations
from mechunlearn.models.hooked import HookedModel

close = torch.testing.assert_close


@pytest.mark.parametrize("mlps", ["freeze", "recompute"])
@pytest.mark.parametrize("family", FAMILIES)
def test_senders_of_every_kind_to_receivers_of_every_kind_equal_the_twin(
    family: str, mlps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hm = deep(family)
    setup, sets = Setup(hm), receiver_sets(hm)
    twins = setup.twins()
    assert BlockFunctions.of(hm).reason == ""
    path_sets = [Paths.of(hm, SENDERS, receivers, mlps=mlps) for receivers in sets]
    actual = [[setup.sweep(paths)] for paths in path_sets]
    if family in ("gpt2", "gemma2"):  # complete runs go through hooks, which know no family
        monkeypatch.setitem(engine_parts._CHECKED, hm, "not fast")
        for sweeps, receivers in zip(actual, sets, strict=True):
            sweeps.append(setup.sweep(Paths.of(hm, SENDERS, receivers, mlps=mlps)))
    for paths, receivers, sweeps in zip(path_sets, sets, actual, strict=True):
        setup.agree(twins, paths, receivers, *sweeps)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_two_lists_of_hooks_are_the_same_experiment(family: str) -> None:
    hm = deep(family)
    own, other = (
        Prompt(torch.randint(2, VOCAB, (1, 5), generator=torch.Generator().manual_seed(n))) for n in (0, 1)
    )
    twin = Twin(hm, own, other)
    (_, clean), (_, dirty) = (hm.run_with_cache(prompt.tokens) for prompt in (own, other))
    at = torch.tensor([[True, False, True, False, True]])
    for (sender, mlps), receivers in zip(PAIRS, receiver_sets(hm), strict=True):
        store: dict[str, Tensor] = {}
        first, second = path_hooks(
            hm, sender, receivers, reference=clean, source=dirty, store=store, mlps=mlps, at=at
        )
        direct = hm.run_with_hooks(own.tokens, fwd_hooks=first)[0]
        actual = hm.run_with_hooks(own.tokens, fwd_hooks=second)[0]
        close(actual, twin.run(Site.parse(sender), receivers, mlps, [0, 2, 4]), rtol=0.0, atol=1e-10)
        if receivers is None:
            close(direct, actual, rtol=0.0, atol=1e-10)


def test_hooks_of_ones_own_are_part_of_both_runs() -> None:
    hm = deep("llama")
    setup, receivers = Setup(hm), ["L2.head[3].q", "L3.mlp"]
    louder = [(f"blocks.{layer}.hook_mlp_out", lambda x, hook=None: 1.5 * x) for layer in (0, 2)]
    with hm.bridge.hooks(fwd_hooks=louder):
        paths = Paths.of(hm, SENDERS, receivers, mlps="recompute")
        assert "hooks of the user" in BlockFunctions.of(hm).reason
        actual = setup.sweep(paths)
    setup.agree(setup.twins([(name, lambda x: 1.5 * x) for name, _ in louder]), paths, receivers, actual)
    assert BlockFunctions.of(hm).reason == ""


def test_a_receiver_that_is_not_after_the_sender_changes_nothing_bit_for_bit(family: str) -> None:
    hm = deep(family)
    setup = Setup(hm)
    keys = "kv" if hm.arch.shape.grouped else "head"
    early = ["L2.head[0].q", f"L2.{keys}[0].v", "L2.resid_pre", "L0.mlp"]
    late = ["L2.head[3]", "L2.attn", "L2.mlp", "L3.head[1]", "L3.mlp"]
    run = cached_run(hm, ragged(setup.own))
    baseline = Engine.of(hm).baseline(run, setup.read)
    for receivers, senders in ((early, late), (["L2.mlp"], ["L2.mlp", "L3.attn"])):
        for mlps in ("freeze", "recompute"):
            assert (setup.sweep(Paths.of(hm, senders, receivers, mlps=mlps)) == baseline).all()


def test_a_sender_replaced_by_itself_changes_nothing_bit_for_bit(family: str) -> None:
    hm = deep(family)
    setup = Setup(hm)
    baseline = Engine.of(hm).baseline(cached_run(hm, ragged(setup.own)), setup.read)
    for receivers in receiver_sets(hm):
        paths = Paths.of(hm, SENDERS, receivers, mlps="recompute")
        assert (setup.sweep(paths, same=True) == baseline).all()


def test_the_stream_after_the_last_block_is_as_good_as_the_logits() -> None:
    setup = Setup(deep("gemma2"))
    actual = [
        setup.sweep(Paths.of(setup.hm, SENDERS, to, mlps="recompute"))
        for to in (None, "logits", ["L3.resid_post"])
    ]
    assert torch.equal(actual[0], actual[1])
    close(actual[2], actual[0], rtol=0.0, atol=1e-12)


def test_the_budget_does_not_matter() -> None:
    hm = deep("llama")
    setup = Setup(hm)
    for receivers in receiver_sets(hm):
        paths = Paths.of(hm, ["L2.head[3]", "embed", "mlp"], receivers, mlps="recompute")
        close(setup.sweep(paths, budget=10), setup.sweep(paths), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_paths_from_head_to_head_equal_transformer_lens(part: Any) -> None:
    hm = deep("gpt2")
    clean, corrupt = (
        torch.randint(2, VOCAB, (2, 6), generator=torch.Generator().manual_seed(n)) for n in (0, 1)
    )

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 5].mean()

    caches = [hm.bridge.run_with_cache(tokens)[1] for tokens in (clean, corrupt)]
    theirs = get_act_patch_direct_path(hm.bridge, corrupt, *caches, metric, 1, 2, part, verbose=False)
    rows = [row[None] for row in corrupt]
    read = AllLogits.at(hm, torch.full((2, 1), 5))
    for layer in (2, 3):
        for head in range(hm.arch.shape.n_heads):
            paths = Paths.of(hm, ["L1.head[2]"], [f"L{layer}.head[{head}].{part}"])
            run = cached_run(hm, ragged(rows), paths.run_names(BlockFunctions.of(hm)))
            source = activations(hm, ragged([row[None] for row in clean]), paths.source_names())
            actual = path_sweep(Engine.of(hm), paths, PathTask.everywhere(run, source, read))[
                0, 0, :, 5
            ].mean()
            # TransformerLens rounds what it finds to float32.
            assert float(actual) == pytest.approx(float(theirs[layer, head]), abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_facts_of_different_lengths_and_answers_of_several_tokens_equal_the_twin(direction: str) -> None:
    hm, facts = deep("gemma2"), tiny_facts()[:5]
    swaps = swap_subjects(hm, facts)
    metrics: tuple[Any, ...] = ("logit_diff", "probability")
    senders, receivers = ["L1.mlp", "L0.head[1]"], ["L2.head[0].q", "L3.mlp"]
    options: Any = {"metric": metrics, "positions": "groups", "direction": direction, "progress": False}
    scores = path_patch(hm, facts, senders, receivers, mlps="recompute", normalized=True, **options)
    assert scores.values.dims == ("fact", "site", "pos", "metric")
    assert scores.values.sizes["fact"] == len(swaps.facts) > 2
    twin = FactTwin(hm, swaps.facts, swaps.swapped)
    swapped = direction == "denoising"
    gaps, actual = [], np.full(scores.values.shape, np.nan)
    for f in range(len(swaps.facts)):
        runs = {
            w: Twin(hm, twin.prompt(f, w, other=swapped), twin.prompt(f, w, other=not swapped))
            for w in swaps.facts[f].options
        }
        plain, other = (
            [twin.score(f, metric, lambda w: logits(hm, twin.prompt(f, w, other=side))) for metric in metrics]  # noqa: B023
            for side in (swapped, not swapped)
        )
        gaps.append(np.subtract(other, plain))
        for s, sender in enumerate(senders):
            for index in range(scores.values.sizes["pos"]):
                where = {w: twin.places(f, w, "groups")[index] for w in runs}
                if all(where.values()):
                    done = {
                        w: runs[w].run(Site.parse(sender), receivers, "recompute", where[w]) for w in runs
                    }
                    after = [twin.score(f, metric, done.__getitem__) for metric in metrics]
                    actual[f, s, index] = np.subtract(after, plain)
    np.testing.assert_allclose(scores.values.values, actual / np.mean(gaps, axis=0), rtol=0.0, atol=1e-9)


def test_in_a_planted_model_the_lookup_alone_goes_through_the_carriers_values() -> None:
    hm, facts = planted_model(), planted_facts()[:12]
    through = path_patch(hm, facts, ("mlp", "attn"), ["L2.head[0].v"], progress=False)
    actual = dict(zip(map(str, through.sites), through.reduce().values.values.tolist(), strict=True))
    lookup = actual.pop("L1.mlp")
    assert lookup > 1 and all(abs(value) < 1e-4 * abs(lookup) for value in actual.values())
    keys = path_patch(hm, facts, ["L1.mlp"], ["L2.head[0].q"], progress=False).reduce()
    assert abs(float(keys.values[0])) < 1e-4 * abs(lookup)
    direct = path_patch(hm, facts, ("mlp", "attn"), progress=False).reduce()
    assert {str(site) for site in direct.top(2)} == {"L2.attn", "L3.mlp"}


def test_noise_and_given_prompts_corrupt_too() -> None:
    hm, facts = planted_model(), planted_facts()[:6]
    through = path_patch(hm, facts, "mlp", ["L2.head[0].v"], corrupt=Noise(samples=2), progress=False)
    assert str(next(iter(through.top(1)))) == "L1.mlp"
    given = path_patch(
        hm, facts, "mlp", "logits", corrupt=planted_facts()[6:12], mlps="recompute", progress=False
    )
    assert given.values.dims == ("fact", "site")


@pytest.mark.parametrize(
    ("senders", "receivers", "options", "error", "words"),
    [
        (
            "mlp",
            None,
            {"mlps": "thaw"},
            ScoresError,
            "mlps must be one of 'freeze' or 'recompute'; not 'thaw'",
        ),
        ("mlp", None, {"direction": "up"}, ScoresError, "direction must be one of 'noising' or 'denoising'"),
        ([], None, {}, ScoresError, r"sites names one or more of \('head', 'attn', 'mlp', 'embed'\)"),
        ("mlp", [], {}, ScoresError, 'receivers names sites of the model, or "logits"; not none'),
        ("mlp", ["L1.mlp", "logits"], {}, ScoresError, "the logits receive alone"),
        ("mlp", ["L1.pattern[0]"], {}, SiteError, r"L1.pattern\[0\] reads nothing from the residual stream"),
        ("mlp", ["L1.head[0].o"], {}, SiteError, r"L1.head\[0\].o reads nothing from the residual stream"),
        ("mlp", ["L1.mlp.in"], {}, SiteError, "L1.mlp.in reads nothing from the residual stream"),
        ("mlp", ["embed"], {}, SiteError, "embed reads nothing from the residual stream"),
        (["L1.mlp.out"], None, {}, SiteError, "L1.mlp.out cannot send"),
        (["L1.resid_pre"], None, {}, SiteError, "L1.resid_pre cannot send"),
        (["L1.kv[0]"], None, {}, SiteError, r"L1.kv\[0\] cannot send"),
        (["L9.mlp"], None, {}, SiteError, "L9.mlp is not a site of this model"),
        ("mlp", ["L1.head[9].q"], {}, SiteError, r"L1.head\[9\].q is not a site of this model"),
        ("mlp", ["L1.head[0].v"], {}, SiteError, r"heads share keys and values in groups, here L1.kv\[0\]"),
        ("mlps", None, {}, SiteError, "'mlps' is not a site"),
        ("mlp", None, {"corrupt": "mean"}, ScoresError, "corrupt must be one of 'subject' or 'noise'; not"),
        ("mlp", None, {"batch_size": 0}, ScoresError, "batch_size must be above zero; not 0"),
        ("mlp", None, {"budget": 0}, ScoresError, "budget must be above zero; not 0"),
    ],
)
def test_what_cannot_be_asked_is_an_error(
    llama: HookedModel, senders: Any, receivers: Any, options: Any, error: type[Exception], words: str
) -> None:
    with unchecked(), pytest.raises(error, match=words):
        path_patch(llama, tiny_facts(), senders, receivers, progress=False, **options)


def test_a_sender_named_twice_sends_once(llama: HookedModel) -> None:
    twice = path_patch(llama, tiny_facts()[:3], ["mlp", "L0.mlp", "L1.mlp"], progress=False)
    assert twice == path_patch(llama, tiny_facts()[:3], "mlp", progress=False)


def test_there_is_no_middle_between_attention_and_mlp_that_run_in_parallel() -> None:
    with pytest.raises(SiteError, match="runs attention and MLP in parallel"):
        Paths.of(deep("neox"), "mlp", ["L1.resid_mid"])
