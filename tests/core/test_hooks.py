"""Hooks are values that never write to what flowed in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_facts import unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechunlearn.core.hooks import Hook, ablate, cache, noise, patch, patch_middle, steer
from mechunlearn.errors import HookError
from mechunlearn.models.hooked import HookedModel


def run(hook: Hook, activation: Tensor) -> Tensor:
    """Fire a hook by hand, and check that it left its input alone and returned a tensor of its own."""
    before = activation.clone()
    after = hook.fn(activation, hook=None)
    assert torch.equal(activation, before)
    assert after is not None and after.data_ptr() != activation.data_ptr()
    return after


def chosen(at: Any, batch: int, pos: int) -> Tensor:
    """Say independently which positions `at` means."""
    mask = torch.zeros(batch, pos, dtype=torch.bool)
    for row in range(batch):
        for column in range(pos):
            if at is None:
                mask[row, column] = True
            elif isinstance(at, int):
                mask[row, column] = column == at % pos
            elif at.dtype == torch.bool:
                mask[row, column] = at[row, column]
            else:
                mask[row, column] = column == int(at[row]) % pos
    return mask


@st.composite
def places(draw: st.DrawFn) -> tuple[Any, int, int]:
    """Some `at`, with the number of rows and positions it is for."""
    batch, pos = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    number = st.integers(-pos, pos - 1)
    rows = st.lists(number, min_size=batch, max_size=batch).map(torch.tensor)
    flags = st.lists(st.booleans(), min_size=batch * pos, max_size=batch * pos)
    mask = flags.map(lambda cells: torch.tensor(cells).reshape(batch, pos))
    return draw(st.one_of(st.none(), number, rows, mask)), batch, pos


@settings(max_examples=60, deadline=None)
@given(places(), st.sampled_from([None, 0, 2, -1]))
def test_patch_writes_exactly_where_it_is_told(selection: tuple[Any, int, int], index: int | None) -> None:
    at, batch, pos = selection
    activation, source = torch.zeros(batch, pos, 3, 2), torch.ones(batch, pos, 3, 2)
    expected = chosen(at, batch, pos)[:, :, None, None].expand(batch, pos, 3, 2).clone()
    if index is not None:
        expected &= (torch.arange(3) == index % 3)[:, None]
    assert torch.equal(run(patch("x", source, at=at, index=index), activation), expected.float())


@settings(max_examples=30, deadline=None)
@given(places())
def test_noise_steering_and_ablation_leave_other_positions_bit_identical(
    selection: tuple[Any, int, int],
) -> None:
    at, batch, pos = selection
    activation = torch.randn(batch, pos, 5)
    mask = chosen(at, batch, pos)
    for hook in (
        noise("x", at=at, std=1.0, seed=0),
        steer("x", torch.ones(5), at=at, scale=2.0),
        ablate("x", at=at),
        ablate("x", to="mean", at=at),
    ):
        assert torch.equal(run(hook, activation)[~mask], activation[~mask])


def test_noise_has_the_asked_size_and_is_the_same_for_the_same_seed() -> None:
    activation = torch.zeros(4, 8, 512)
    first = run(noise("x", std=0.5, seed=3), activation)
    assert torch.equal(first, run(noise("x", std=0.5, seed=3), activation))
    assert not torch.equal(first, run(noise("x", std=0.5, seed=4), activation))
    assert float(first.std()) == pytest.approx(0.5, rel=0.02)
    assert torch.equal(first.double(), run(noise("x", std=0.5, seed=3), activation.double()))


def test_ablation_writes_zero_a_mean_or_a_value() -> None:
    activation = torch.arange(12.0).reshape(2, 3, 2)
    assert not run(ablate("x"), activation).any()
    assert torch.equal(run(ablate("x", to="mean", at=1), activation)[:, 1], torch.tensor([[5.0, 6.0]] * 2))
    sevens = run(ablate("x", to=torch.tensor(7.0), index=0), activation)
    assert torch.equal(sevens[..., 0], torch.full((2, 3), 7.0))
    assert torch.equal(sevens[..., 1], activation[..., 1])


def test_steering_adds_the_scaled_direction() -> None:
    out = run(steer("x", torch.tensor([1.0, 0.0]), scale=-2.0, at=0), torch.zeros(1, 2, 2))
    assert out.tolist() == [[[-2.0, 0.0], [0.0, 0.0]]]


def test_a_cache_is_a_copy_without_a_graph() -> None:
    store: dict[str, Tensor] = {}
    activation = torch.ones(1, 2, 3, requires_grad=True)
    assert cache("x", store).fn(activation, hook=None) is None
    assert not store["x"].requires_grad and store["x"].data_ptr() != activation.data_ptr()


def test_gradients_flow_through_what_a_hook_leaves_alone() -> None:
    activation = torch.ones(1, 2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(run(ablate("x", at=0), activation).sum(), activation)
    assert gradient[0, :, 0].tolist() == [0.0, 1.0]


def test_hooks_are_plain_tuples_that_mix_with_a_users_own(llama: HookedModel) -> None:
    tokens, store, outputs = torch.tensor([[0, 5, 6, 7]]), dict[str, Tensor](), list[Any]()
    name = "blocks.1.hook_mlp_out"
    clean = llama.run_with_hooks(tokens, fwd_hooks=[cache(name, store)])
    recording = (name, lambda activation, hook: outputs.append(activation.clone()))
    again = llama.run_with_hooks(tokens, fwd_hooks=[ablate(name), patch(name, store), recording])
    assert torch.equal(clean, again) and torch.equal(outputs[0], store[name])
    assert not torch.equal(clean, llama.run_with_hooks(tokens, fwd_hooks=[ablate(name)]))


def test_a_transformer_lens_cache_is_a_source_under_every_name(llama: HookedModel) -> None:
    tokens, name = torch.tensor([[0, 5, 6, 7]]), "blocks.0.attn.hook_z"
    clean, stored = llama.run_with_cache(tokens)
    assert torch.equal(clean, llama.run_with_hooks(tokens, fwd_hooks=[ablate(name), patch(name, stored)]))


FLAT = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (patch("x", {}), r"patch of 'x' found no entry of that name in its source; cache it first"),
        (
            patch("x", torch.zeros(2, 5, 4)),
            r"\(2, 5, 4\), but the activation is \(2, 3, 4\); pass one row",
        ),
        (
            patch("x", torch.zeros(3, 3, 4)),
            r"\(3, 3, 4\), but the activation is \(2, 3, 4\); pass one row",
        ),
        (ablate("x", at=3), r"at= of the hook on 'x' is \[3, 3\]; expected one position, or one per row"),
        (ablate("x", at=torch.tensor([0])), r"is \[0\]; expected .* for 2 rows of 3 positions"),
        (ablate("x", at=torch.tensor([[True]])), r"a mask of shape \(1, 1\), but .* 2 rows and 3 positions"),
        (ablate("x", index=4), r"index= of the hook on 'x' is 4, but the activation's shape is \(2, 3, 4\)"),
    ],
)
def test_what_does_not_fit_the_activation_is_an_error(hook: Hook, message: str) -> None:
    with pytest.raises(HookError, match=message):
        hook.fn(FLAT, hook=None)


def test_an_unknown_ablation_is_an_error() -> None:
    unknown: Any = "noise"
    with unchecked(), pytest.raises(HookError, match="'zero' or 'mean'; not 'noise', or a tensor"):
        ablate("x", to=unknown)


@torch.no_grad()
def test_the_middle_of_a_block_is_written_into_the_stream_itself(llama: HookedModel) -> None:
    tokens, states = torch.tensor([[0, 5, 6, 7], [0, 8, 9, 4]]), dict[str, Tensor]()
    at = torch.tensor([[False, True, True, False], [False, False, False, True]])
    written = torch.randn(2, 4, llama.cfg.d_model, generator=torch.Generator().manual_seed(0))
    points = [f"blocks.0.hook_{kind}" for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    reading = [cache(name, states) for name in points]
    llama.run_with_hooks(tokens, fwd_hooks=[*patch_middle(0, written, at=at), *reading])
    before, attention, mlp, after = (states[name] for name in points)
    torch.testing.assert_close((before + attention)[at], written[at])
    torch.testing.assert_close(after[at], (written + mlp)[at])
    _, clean = llama.run_with_cache(tokens)
    assert torch.equal(attention[~at], clean["blocks.0.hook_attn_out"][~at])


def test_a_middle_that_is_not_there_or_does_not_fit_is_an_error(llama: HookedModel) -> None:
    tokens = torch.tensor([[0, 5, 6]])
    for source, message in (
        (dict[str, Tensor](), "patch of 'blocks.1.hook_resid_mid' found no entry"),
        (torch.zeros(1, 2, llama.cfg.d_model), r"patch of 'blocks.1.hook_resid_mid' has shape \(1, 2, "),
    ):
        with pytest.raises(HookError, match=message):
            llama.run_with_hooks(tokens, fwd_hooks=patch_middle(1, source))
