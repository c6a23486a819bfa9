"""What always holds of the engine: random patches, edited weights, strange models, interruptions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.engine_setups import TIGHT, Setup, deep, prompts, some_sites, tiers, wide
from helpers.patching_twin import AllLogits, Prompt, logits, ragged, values, writes
from helpers.patching_twin import full_softmax as full_softmax
from helpers.small_facts import weights
from helpers.tiny_models import VOCAB, hf_model
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechunlearn.core.sites.site import Site
from mechunlearn.errors import FallbackWarning
from mechunlearn.localization.engine import block_calls as calls
from mechunlearn.localization.engine import fused_block as components
from mechunlearn.localization.engine import readout as reading
from mechunlearn.localization.engine.cached_run import cached_run
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.patches import Patches, writes_of
from mechunlearn.models.activations import activations
from mechunlearn.models.hooked import HookedModel

SIZE = 5
KINDS = ("resid_pre", "resid_mid", "resid_post", "attn", "mlp")


@st.composite
def drawn_sites(draw: st.DrawFn, hm: HookedModel) -> tuple[Site, ...]:
    """One to four sites of any kind, written together."""
    shape, units = hm.arch.shape, st.integers(0, 1)
    layers = st.integers(0, shape.n_layers - 1)
    whole = st.builds(Site, st.sampled_from(KINDS), layers)
    heads = st.builds(
        Site, st.just("head"), layers, st.integers(0, shape.n_heads - 1), st.sampled_from([None, "q"])
    )
    keys = st.builds(Site, st.just("kv" if shape.grouped else "head"), layers, units, st.sampled_from("kv"))
    others = st.builds(Site, st.sampled_from(["pattern", "neuron"]), layers, units)
    sites: list[Site] = draw(st.lists(whole | heads | keys | others, min_size=1, max_size=4, unique=True))
    return tuple(sites)


# Without shrinking, which takes minutes where every example compiles its hooks.
@settings(max_examples=14, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.data())
def test_any_sites_anywhere_equal_the_hooked_run_and_the_twin(data: st.DataObject) -> None:
    hm = data.draw(st.sampled_from([deep(), wide("gemma2"), wide("gpt2")]), label="model")
    count = 4
    sets = [data.draw(drawn_sites(hm), label="sites") for _ in range(count)]
    own, others = prompts(0, (SIZE, SIZE)), prompts(50, (SIZE,) * 3, shared=data.draw(st.integers(0, SIZE)))
    columns = [
        torch.tensor(data.draw(st.lists(st.integers(0, high), min_size=count, max_size=count)))
        for high in (1, 2)
    ]
    where = torch.tensor(
        data.draw(
            st.lists(st.lists(st.booleans(), min_size=SIZE, max_size=SIZE), min_size=count, max_size=count)
        )
    )
    reads = torch.tensor(
        data.draw(st.lists(st.tuples(*[st.integers(0, SIZE - 1)] * 2), min_size=2, max_size=2))
    )
    patches = Patches(
        tuple(writes_of(hm, sites) for sites in sets), torch.arange(count), columns[0], columns[1], where
    )
    run, source = cached_run(hm, ragged(own), patches.names), activations(hm, ragged(others), patches.names)
    expected = []
    for sites, row, given_row, at in zip(sets, *(column.tolist() for column in columns), where, strict=True):
        changes = writes(hm, sites, values(hm, Prompt(others[given_row])), at.nonzero()[:, 0])
        expected.append(logits(hm, Prompt(own[row]), changes)[reads[row]].flatten())
    for engine in tiers(hm):
        actual = engine.sweep(run, source, patches, AllLogits.at(hm, reads))
        torch.testing.assert_close(actual, torch.stack(expected), **TIGHT)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_edit_between_two_sweeps_is_seen(name: str) -> None:
    hm = HookedModel.from_hf(hf_model(name)).to(torch.float64)
    engine, sites = Engine.of(hm), some_sites(hm)[::3]
    before = Setup(hm, sites, (6,)).sweep(engine)
    with torch.no_grad():
        for site in ("L0.head[1].q", "L1.head[0].v" if name == "gpt2" else "L1.kv[0].v", "L1.mlp.out"):
            for part in hm.slices([Site.parse(site)]):
                part.add_(hm.params[part.name], 0.5 * torch.ones_like(part.of(hm.params[part.name])))
    hm.sync()
    setup = Setup(hm, sites, (6,))
    expected = setup.twin()
    for each in (engine, Engine.of(hm), *tiers(hm)):
        torch.testing.assert_close(setup.sweep(each), expected, **TIGHT)
    assert (before - expected).abs().max() > 0.01


def forget(monkeypatch: pytest.MonkeyPatch, hm: HookedModel) -> None:
    monkeypatch.setattr(calls.PrefixCache, "update", lambda self, keys, values, *_, **__: (keys, values))


def refuse(monkeypatch: pytest.MonkeyPatch, hm: HookedModel) -> None:
    def update(self: Any, *given: Any, **other: Any) -> Any:
        raise TypeError("no such cache")

    monkeypatch.setattr(calls.PrefixCache, "update", update)


def look_ahead(monkeypatch: pytest.MonkeyPatch, hm: HookedModel) -> None:
    for block in hm.bridge.blocks:
        mlp = block.mlp.original_component
        plain = mlp.forward
        monkeypatch.setattr(mlp, "forward", lambda x, plain=plain: plain(x) + x.mean(1, keepdim=True))


def count_positions(monkeypatch: pytest.MonkeyPatch, hm: HookedModel) -> None:
    mlp = hm.bridge.blocks[1].mlp.original_component
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: plain(x) + x.shape[1])


@pytest.mark.parametrize(
    ("strange", "why"),
    [
        (forget, "patches from position [12] on differ from hooked runs"),
        (refuse, r"a block could not be run on its own \(TypeError: no such cache\)"),
        (look_ahead, "differ|depend"),
        (count_positions, "differ"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_model_that_cannot_be_entered_from_the_middle_gets_complete_runs_and_says_why(
    strange: Callable[..., None], why: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    hm = HookedModel.from_hf(hf_model("llama")).to(dtype).fork()
    strange(monkeypatch, hm)
    with pytest.warns(FallbackWarning, match=f"every patch is a complete run, since .*({why})"):
        engine = Engine.of(hm)
    assert re.search(why, engine.reason)
    if dtype == torch.float64:
        setup = Setup(hm, some_sites(hm)[::2], (7, 7), share=0.3)
        torch.testing.assert_close(setup.sweep(engine), setup.twin(), **TIGHT)


def test_parts_that_do_not_fit_a_model_leave_it_to_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    hm = HookedModel.from_hf(hf_model("llama")).to(torch.float64)
    monkeypatch.setattr(components, "_rotated", lambda vectors, cosine, sine: vectors)
    with pytest.warns(FallbackWarning, match="blocks do not run in their fused form"):
        engine = Engine.of(hm)
    assert engine.reason == "" and engine.slower
    setup = Setup(hm, some_sites(hm)[::2], (7,), share=0.5)
    torch.testing.assert_close(setup.sweep(engine), setup.twin(), **TIGHT)


def test_a_model_told_to_keep_no_cache_can_be_patched() -> None:
    model = hf_model("llama")
    model.config.use_cache = False
    hm = HookedModel.from_hf(model).to(torch.float64)
    setup = Setup(hm, some_sites(hm)[::2], (7,), share=0.5)
    torch.testing.assert_close(setup.sweep(Engine.of(hm)), setup.twin(), **TIGHT)


def squash(x: Tensor, hook: Any = None) -> Tensor:
    return 2 * torch.tanh(x)


def by_position(x: Tensor, hook: Any = None) -> Tensor:
    changed = x.clone()
    changed[:, 2] = 0
    changed[:, -1] *= 3
    return changed


@pytest.mark.parametrize(
    ("point", "hook"),
    [
        ("blocks.0.hook_resid_post", squash),
        ("blocks.0.hook_resid_pre", squash),
        ("blocks.0.hook_mlp_out", squash),
        ("blocks.1.attn.hook_pattern", squash),
        ("blocks.1.hook_attn_out", by_position),
        ("blocks.1.hook_resid_post", by_position),
    ],
)
def test_a_users_own_hooks_keep_firing_and_see_all_positions(point: str, hook: Callable[..., Tensor]) -> None:
    hm = wide("llama")
    checked = Engine.of(hm)
    with hm.hooks([(point, hook)]):
        setup = Setup(hm, some_sites(hm), (7, 7), share=0.3)
        setup.read = AllLogits.at(hm, torch.tensor([[3, 4], [3, 3]]))
        expected = setup.twin()
        for engine in (checked, tiers(hm)[1]):
            torch.testing.assert_close(setup.sweep(engine), expected, **TIGHT)
        assert hm.hook_dict[point].fwd_hooks


def test_a_users_hook_during_the_check_does_not_decide_for_later() -> None:
    hm = HookedModel.from_hf(hf_model("llama"))

    def far(x: Tensor, hook: Any = None) -> Tensor:
        return x + x[:, 9:10]

    with hm.hooks([("blocks.0.hook_mlp_out", far)]):
        hm(torch.ones(1, 12, dtype=torch.long))
        Engine.of(hm)
    assert Engine.of(hm).reason == ""


def hooks_of(hm: HookedModel) -> dict[str, tuple[int, int, int]]:
    """How many hooks every module of the bridge has."""
    return {
        name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(getattr(m, "fwd_hooks", ())))
        for name, m in hm.bridge.named_modules()
    }


class Stops:
    """Reads nothing, and stops the second time."""

    width, all_logits = 1, True

    def __init__(self, error: BaseException) -> None:
        self.positions, self.error, self.calls = torch.tensor([[5]]), error, 0

    def __call__(self, final: Any, rows: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise self.error
        return torch.zeros(len(rows), 1)


@pytest.mark.parametrize("error", [None, ValueError(), KeyboardInterrupt()])
def test_whatever_happens_the_model_is_as_it_was(error: BaseException | None) -> None:
    hm = HookedModel.from_hf(hf_model("llama"))
    # TransformerLens itself leaves a hook in every norm, once.
    hm(torch.ones(1, 2, dtype=torch.long))
    next(iter(hm.params.values())).requires_grad_(False)
    hm.params["lm_head.weight"].grad = torch.ones_like(hm.params["lm_head.weight"])
    hm.bridge.add_hook("blocks.0.hook_mlp_out", lambda x, hook: None)
    before = weights(hm), hooks_of(hm), [(p.requires_grad, p.grad) for p in hm.params.values()]
    setup = Setup(hm, some_sites(hm)[::3], (6,))
    for engine in tiers(hm):
        if error is None:
            setup.sweep(engine)
            continue
        with pytest.raises(type(error)):
            engine.sweep(setup.run, setup.source, setup.patches, Stops(error))
        with pytest.raises(type(error)), hm.hooks([("blocks.1.hook_mlp_out", raises(error))]):
            setup.sweep(engine)
        with pytest.raises(type(error)), hm.hooks([("blocks.1.hook_mlp_out", raises(error))]):
            cached_run(hm, ragged(setup.own))
    assert before == (weights(hm), hooks_of(hm), [(p.requires_grad, p.grad) for p in hm.params.values()])


def raises(error: BaseException) -> Callable[..., None]:
    def hook(x: Tensor, hook: Any = None) -> None:
        raise error

    return hook


def test_the_budget_bounds_how_much_is_alive_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hm, seen, read = wide("llama"), [0], [0]
    hooks = [
        b.mlp.original_component.register_forward_pre_hook(lambda m, x: seen.append(x[0].shape[:2].numel()))
        for b in hm.bridge.blocks
    ]
    hooks.append(
        hm.bridge.unembed.original_component.register_forward_pre_hook(
            lambda m, x: read.append(x[0].shape[:2].numel())
        )
    )
    monkeypatch.setattr(reading, "LOGITS", 6 * VOCAB)
    try:
        for sites in (some_sites(hm)[:2], some_sites(hm)[:10]):
            setup = Setup(hm, sites, (9, 9, 9))
            seen.clear()
            read.clear()
            for engine in tiers(hm, budget=40)[: 3 if len(sites) == 2 else 2]:
                setup.sweep(engine)
            assert 20 < max(seen) <= 40 and len(seen) > len(sites) and max(read) <= 6
    finally:
        for hook in hooks:
            hook.remove()


def test_single_precision_agrees_with_the_twin_to_a_small_part_of_the_effects(family: str) -> None:
    hm = HookedModel.from_hf(hf_model(family))
    setup = Setup(hm, some_sites(hm)[::2], share=0.2)
    expected = setup.twin().double()
    scale = (expected - Engine(hm).baseline(setup.run, setup.read)[setup.patches.row]).abs().max()
    for engine in tiers(hm):
        assert (setup.sweep(engine) - expected).abs().max() <= 5e-5 * scale
