"""What every test of bad input asks: an error that says what it should, and nothing changed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import mechunlearn as mu
from helpers.small_facts import bits


def hooks(hm: mu.HookedModel) -> int:
    """How many hooks of a user hang on a model (TransformerLens keeps some of its own in its norms)."""
    plain = (getattr(m, f"_{when}_hooks") for m in hm.hf.modules() for when in ("forward", "forward_pre"))
    seen = (store for p in hm.hook_dict.values() for store in (p.fwd_hooks, p.bwd_hooks, p._forward_hooks))
    return sum(len(store) for store in (*plain, *seen))


def state(hm: mu.HookedModel | None, folder: Path | None) -> object:
    """All that an error must leave alone."""
    random = bits(torch.get_rng_state()), torch.is_grad_enabled()
    model: object = None
    if hm is not None:
        gradients = [(p.requires_grad, p.grad) for p in hm.params.values()]
        model = hm.identity, hooks(hm), hm.hf.training, gradients, hm.edits
    files = {} if folder is None else {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return random, model, files


@contextmanager
def refused(
    error: type[BaseException], *said: str, hm: mu.HookedModel | None = None, folder: Path | None = None
) -> Iterator[None]:
    """Expect an error that says all of this, and find model, files and random state as they were."""
    before = state(hm, folder)
    with pytest.raises(error) as caught:
        yield
    assert [words for words in said if words not in str(caught.value)] == [], str(caught.value)
    assert state(hm, folder) == before


def stop_button(*_: object, **__: object) -> None:
    """What a notebook's stop button sends."""
    signal.raise_signal(signal.SIGINT)
