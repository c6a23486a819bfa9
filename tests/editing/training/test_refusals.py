"""What training refuses before it runs anything, and what it is not disturbed by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from helpers.refusals import refused
from helpers.small_facts import bits, fit
from torch import Tensor

import mechunlearn as mu
from mechunlearn.editing.objectives.requests import Outputs, Request
from mechunlearn.editing.training.limits import Limits
from mechunlearn.errors import DataError, FactError, TrainingError
from mechunlearn.models.encoding.encoder import encode_text


@dataclass(frozen=True)
class Giving:
    """An objective that gives whatever it is told to."""

    kind: str
    aim: ClassVar[Literal["new", "forget"]] = "new"
    requests: ClassVar[Mapping[str, Request]] = {"forget": Request("forget", "new")}

    def __call__(self, readings: Mapping[str, Outputs]) -> Any:
        loss = readings["forget"].logits.logsumexp(-1)
        return {"nothing": {}, "a number": {"loss": 1.0}, "an axis": {"loss": loss[:1]}}[self.kind]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", ["nothing", "a number", "an axis"])
def test_what_is_no_loss_is_refused(llama: mu.HookedModel, kind: str) -> None:
    with refused(TrainingError, "Giving gave", "a tensor of one number without axes", hm=llama):
        fit(llama, objective=Giving(kind))


class Silent:
    """An objective that does not tell its options."""

    aim: Literal["new", "forget"] = "new"
    requests: ClassVar[Mapping[str, Request]] = {"forget": Request("forget", "new")}

    def __call__(self, readings: Mapping[str, Outputs]) -> Mapping[str, Tensor]:
        return {"loss": readings["forget"].logits.logsumexp(-1).mean()}


def test_a_run_that_cannot_be_told_from_another_is_not_resumed(llama: mu.HookedModel, tmp_path: Path) -> None:
    with refused(TrainingError, "does not tell its options", "frozen dataclass", hm=llama):
        fit(llama, objective=Silent(), checkpoint=tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_a_corpus_must_be_encoded_and_read_and_not_empty(llama: mu.HookedModel) -> None:
    corpus = encode_text(llama, ["it rains in May"])
    with refused(FactError, "the corpus is a list; give an encoded Batch", hm=llama):
        fit(llama, objective=mu.objectives.Relabel(), corpus=["it rains in May"])
    with refused(FactError, "a corpus is given and Inject reads none", hm=llama):
        fit(llama, corpus=corpus)
    with refused(FactError, "the corpus has no rows", hm=llama):
        fit(llama, objective=mu.objectives.Relabel(), corpus=corpus.rows([]))


@pytest.mark.usefixtures("unchecked")
def test_places_to_write_are_checked_before_anything_is_run(llama: mu.HookedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused(DataError, "which is a file; give a folder", hm=llama):
        fit(llama, checkpoint=tmp_path / "file")
    with refused(DataError, "give a folder to write in", hm=llama):
        fit(llama, checkpoint=tmp_path / "file" / "below")
    with pytest.raises(TrainingError, match="which is no folder; make it first"):
        Limits(folder=tmp_path / "missing")
    with refused(TrainingError, "limits is 100; give a Limits", hm=llama):
        fit(llama, limits=100)


def test_hooks_of_the_user_have_no_part_in_training(llama: mu.HookedModel) -> None:
    plain = fit(llama)
    handle = llama.hf.get_submodule("model.layers.1").register_forward_hook(lambda *run: run[-1] * 0.5)
    try:
        with llama.bridge.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda state, hook: state * 0)]):
            hooked = fit(llama)
    finally:
        handle.remove()
    assert [bits(d.values) for d in hooked.deltas] == [bits(d.values) for d in plain.deltas]


def test_a_model_edited_in_inference_mode_can_be_edited_again(llama: mu.HookedModel) -> None:
    first = fit(llama, "L0.mlp")
    with torch.inference_mode():
        again = fit(first.apply(llama), "L1.mlp")
    assert all(bool(delta.values.any()) for delta in again.deltas)
