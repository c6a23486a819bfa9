"""The engine against its twin: one complete run per job, in every family and by every way of running."""

from __future__ import annotations

import pytest
import torch
from helpers.engine_setups import TIGHT, Setup, deep, some_sites, tiers, wide
from helpers.patching_twin import AllLogits, ragged
from helpers.patching_twin import full_softmax as full_softmax

from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.cached_run import cached_run
from mechunlearn.localization.engine.engine import Engine


def test_every_kind_of_site_at_every_sort_of_place_equals_the_twin(family: str) -> None:
    hm = wide(family)
    assert Engine.of(hm).reason == Engine.of(hm).slower == ""
    setup = Setup(hm, some_sites(hm), share=0.3)
    expected = setup.twin()
    assert torch.unique(expected.round(decimals=6), dim=0).shape[0] > len(expected) // 4
    for engine in tiers(hm):
        torch.testing.assert_close(setup.sweep(engine), expected, **TIGHT)


def windows(kind: str, width: int, layers: int = 5) -> list[tuple[Site, ...]]:
    """Neighbouring layers around each, cut at both ends."""
    near = [range(max(0, c - width // 2), min(layers, c + (width + 1) // 2)) for c in range(layers)]
    return [tuple(Site(kind, layer) for layer in some) for some in near]


@pytest.mark.parametrize("kind", ["attn", "mlp", "resid_post", "resid_mid"])
def test_windows_that_share_their_beginning_equal_the_twin(kind: str) -> None:
    every = [tuple(Site(kind, layer) for layer in range(stop)) for stop in range(1, 6)]
    # What begins alike but goes on in the same layer has no common state after that layer.
    same = [(Site("attn", 0),), (Site("attn", 0), Site("mlp", 0), Site(kind, 3))]
    setup = Setup(deep(), [*windows(kind, 4), *every, *same], (6,))
    expected = setup.twin()
    for engine in (*tiers(deep()), *tiers(deep(), budget=17)[:2]):
        torch.testing.assert_close(setup.sweep(engine), expected, **TIGHT)


def test_the_only_token_of_a_prompt_can_be_patched(family: str) -> None:
    hm = wide(family)
    for lengths in ((1,), (1, 1)):
        setup = Setup(hm, some_sites(hm), lengths, share=0.1)
        expected = setup.twin()
        for engine in tiers(hm):
            torch.testing.assert_close(setup.sweep(engine), expected, **TIGHT)


def test_what_changes_nothing_is_the_baseline_bit_for_bit(family: str) -> None:
    hm = wide(family)
    setup = Setup(hm, some_sites(hm)[::2])
    for engine in tiers(hm)[:2]:
        baseline = engine.baseline(setup.run, setup.read)[setup.patches.row]
        setup.source, other = dict(setup.run.activations), setup.source
        assert torch.equal(setup.sweep(engine), baseline)
        setup.source = other
        # Nowhere at all; then at the last position, where only the middle is read.
        nowhere = (~setup.patches.where.any(1)).nonzero()[:, 0]
        assert torch.equal(setup.sweep(engine, setup.patches.pick(nowhere)), baseline[nowhere])
        early = AllLogits.at(hm, setup.read.positions[:, 1:])
        after = (setup.patches.where.int().argmax(1) > early.positions[setup.patches.row, 0]).nonzero()[:, 0]
        actual = engine.sweep(setup.run, setup.source, setup.patches.pick(after), early)
        assert len(after) and torch.equal(actual, engine.baseline(setup.run, early)[setup.patches.row[after]])


def test_the_last_output_where_nobody_reads_is_the_baseline_bit_for_bit(family: str) -> None:
    hm = wide(family)
    last = hm.arch.shape.n_layers - 1
    setup = Setup(hm, [(Site("mlp", last),), (Site("resid_post", last),)], (9,))
    unread = ~setup.patches.where[
        torch.arange(len(setup.patches))[:, None], setup.read.positions[setup.patches.row]
    ].any(1)
    for engine in tiers(hm)[:2]:
        actual, baseline = setup.sweep(engine), engine.baseline(setup.run, setup.read)
        assert unread.any() and torch.equal(actual[unread], baseline.expand_as(actual)[unread])
        assert (actual[~unread] != baseline.expand_as(actual)[~unread]).any(1).all()


def test_patching_everything_gives_the_other_run(family: str) -> None:
    hm = wide(family)
    setup = Setup(hm, [(Site("resid_pre", 0),), (Site("resid_post", hm.arch.shape.n_layers - 1),)])
    everywhere = setup.patches.pick(
        (setup.patches.where == setup.run.batch.mask.bool()[setup.patches.row]).all(1).nonzero()[:, 0]
    )
    others = cached_run(hm, ragged(setup.others))
    for engine in tiers(hm):
        expected = engine.baseline(others, setup.read)[everywhere.row]
        torch.testing.assert_close(setup.sweep(engine, everywhere), expected, **TIGHT)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_neither_budget_nor_order_matters(name: str) -> None:
    hm = wide(name)
    setup = Setup(hm, some_sites(hm), share=0.1)
    shuffled = torch.randperm(len(setup.patches), generator=torch.Generator().manual_seed(0))
    for whole in tiers(hm, budget=1 << 20):
        actual = setup.sweep(whole)
        small = Engine(hm, whole.reason, whole.slower, budget=300 if whole.reason else 1)
        torch.testing.assert_close(setup.sweep(small), actual, rtol=0.0, atol=1e-12)
        mixed = setup.sweep(whole, setup.patches.pick(shuffled))
        torch.testing.assert_close(mixed, actual[shuffled], rtol=0.0, atol=1e-12)
