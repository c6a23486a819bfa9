"""What is solved for does not depend on who looks at the model or trains it, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.key_twin import WRITTEN, known, module
from helpers.refusals import refused, stop_button
from helpers.small_facts import bits
from helpers.tiny_models import hf_model, memory_tokenizer
from torch import Tensor

from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.closed_form.mass_editing import memit
from mechunlearn.editing.closed_form.rank_one_edit import rome
from mechunlearn.editing.closed_form.values import ValueSearch
from mechunlearn.errors import EditError
from mechunlearn.models.hooked import HookedModel

BOTH = ("L0.mlp.out", "L1.mlp.out")
# Prefixes are sampled, so that what is sampled is seen as well.
QUICK: dict[str, Any] = {"search": ValueSearch(steps=3), "progress": False}


def gpt2() -> HookedModel:
    """A model that drops activations in training."""
    plain = hf_model("gpt2")
    assert plain.config.resid_pdrop > 0
    return HookedModel.from_hf(plain, memory_tokenizer())


def solved(hm: HookedModel) -> list[bytes]:
    """Every bit of statistics and of both kinds of edit."""
    statistics = known(hm, *BOTH)
    one = rome(hm, Localization(BOTH[:1]), WRITTEN[:1], statistics=statistics, **QUICK)
    many = memit(hm, Localization(BOTH), WRITTEN, statistics=statistics, **QUICK)
    found = [*statistics.moments.values(), *(delta.values for e in (one, many) for delta in e.deltas)]
    losses = torch.tensor([list(record.values()) for e in (one, many) for record in e.history])
    return [bits(tensor) for tensor in (*found, losses)]


@cache
def expected() -> list[bytes]:
    """What an untouched model gives."""
    return solved(gpt2())


def doubled(tensor: Tensor, hook: Any = None) -> Tensor:
    return 2 * tensor


@contextmanager
def looked_at(hm: HookedModel) -> Iterator[None]:
    names = ("blocks.0.mlp.out.hook_in", "blocks.1.hook_resid_post")
    with hm.bridge.hooks(fwd_hooks=[(name, doubled) for name in names]):
        yield


@contextmanager
def hooked(hm: HookedModel) -> Iterator[None]:
    plain = module(hm, 0)
    handles = [
        plain.register_forward_hook(lambda at, given, output: 2 * output),
        plain.register_forward_pre_hook(lambda at, given: (2 * given[0],)),
        module(hm, 1).register_full_backward_hook(lambda at, inner, outer: tuple(3 * g for g in inner)),
    ]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def trained(hm: HookedModel) -> Iterator[None]:
    hm.bridge.train()
    hm.hf.train()
    yield
    hm.bridge.eval()
    hm.hf.eval()


@pytest.mark.parametrize("state", [looked_at, hooked, trained])
def test_hooks_and_training_mode_do_not_change_a_bit(state: Callable[[HookedModel], Any]) -> None:
    hm = gpt2()
    with state(hm):
        assert solved(hm) == expected()
        assert hm.hf.training == hm.bridge.training == (state is trained)


def test_a_bridge_that_holds_old_copies_is_not_read(tokenizer: Any) -> None:
    """In GPT-NeoX the bridge copies queries, keys and values, until it is told of a change by ``sync``."""
    hm, fresh = (HookedModel.from_hf(hf_model("neox"), tokenizer) for _ in range(2))
    _ = hm.bridge
    name = next(name for name in hm.params if "query_key_value.weight" in name)
    with torch.no_grad():
        for one in (hm, fresh):
            one.params[name].mul_(1.5)
    assert solved(hm) == solved(fresh)


def test_an_error_leaves_hooks_and_mode_as_they_were() -> None:
    hm = gpt2()
    statistics = known(hm, BOTH[0])
    with hooked(hm), trained(hm), refused(EditError, "say nothing of L1.mlp.out", hm=hm):
        memit(hm, Localization(BOTH), WRITTEN, statistics=statistics, **QUICK)


@pytest.mark.parametrize("where", ["safetensors.torch.save_file", "pathlib.Path.replace"])
def test_the_stop_button_leaves_no_half_written_file(
    llama: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from safetensors.torch import save_file

    def begin(tensors: Any, path: Path, **_: Any) -> None:
        save_file(tensors, path)
        stop_button()

    found, path = known(llama, BOTH[0]), tmp_path / "keys.safetensors"
    found.save(path)
    with monkeypatch.context() as patched:
        patched.setattr(where, begin if where.endswith("save_file") else stop_button)
        with refused(KeyboardInterrupt, folder=tmp_path):
            found.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["keys.safetensors"]
