"""An objective is given exactly what it declared to read."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from helpers.fed_data import MANY, draw, feed, spoken
from helpers.small_facts import FORGET, RETAIN, TEXT
from helpers.tiny_models import LAYERS, VOCAB
from torch import Tensor

from mechunlearn.core.facts.collection import Facts
from mechunlearn.editing.objectives.requests import Request
from mechunlearn.editing.training.partial_forward import first_block
from mechunlearn.errors import FactError, SiteError, TrainingError
from mechunlearn.models.hooked import HookedModel


def changes(hm: HookedModel, *, entry: int = 0) -> dict[str, Tensor]:
    """New values for every matrix, or for those of one block."""
    random = torch.Generator().manual_seed(1)
    return {
        name: p.detach() + 0.05 * torch.randn(p.shape, dtype=p.dtype, generator=random)
        for name, p in hm.params.items()
        if p.ndim == 2 and (not entry or f".{entry}." in name)
    }


def by_itself(hm: HookedModel, text: str, layer: int) -> tuple[Tensor, Tensor]:
    """Logits and the residual stream after a block for one text, alone and unpadded, by TransformerLens."""
    name = f"blocks.{layer}.hook_resid_post"
    logits, cache = hm.run_with_cache(text, names_filter=name)
    return logits[0].detach(), cache[name][0].detach()


@pytest.mark.parametrize(("positions", "entry"), [("answer", 0), ("all", 0), ("answer", 1)])
def test_readings_are_what_the_model_computes_on_each_text_alone(
    hm: HookedModel, family: str, positions: Any, entry: int
) -> None:
    # Hugging Face's RMS norms and rotations are in float32 whatever the precision of the model.
    tolerance = 1e-12 if family in ("gpt2", "neox") else 1e-5
    before = hm.to(torch.float64)
    new = changes(before, entry=entry)
    after = before.fork(new)
    requests = {
        f"{reference} {layer}": Request("forget", "new", positions, hidden=layer, reference=reference)
        for layer in range(entry, LAYERS)
        for reference in ("hidden", "logprobs", "label_logprobs")
    }
    readings = draw(feed(before, requests, trained=new, entry=entry), new)
    texts = [f"{ask.prompt} {ask.new}" for fact in FORGET for ask in fact.phrasings("train")]
    for (name, reading), row in product(readings.items(), range(len(texts))):
        kind, layer = name.split()
        tokens, here = before.to_tokens(texts[row])[0], reading.row == row
        count = int(here.sum())
        assert torch.equal(reading.labels[here], tokens[-count:])
        assert count == (5 if positions == "answer" else len(tokens) - 1)
        logits, hidden = by_itself(after, texts[row], int(layer))
        was, hidden_before = by_itself(before, texts[row], int(layer))
        logprobs = was.log_softmax(-1)
        reference = {
            "hidden": hidden_before[:-1],
            "logprobs": logprobs[:-1],
            "label_logprobs": logprobs[:-1].gather(-1, tokens[1:, None])[:, 0],
        }[kind]
        compared: Any = (
            (reading.logits, logits[:-1]),
            (reading.hidden, hidden[:-1]),
            (getattr(reading, f"reference_{kind}"), reference),
        )
        for found, expected in compared:
            assert (found[here] - expected[-count:]).abs().max() < tolerance


def test_what_was_not_asked_for_is_not_there(llama: HookedModel) -> None:
    reading = draw(feed(llama, {"plain": Request("retain")}))["plain"]
    assert reading.hidden is reading.reference_logprobs is reading.reference_hidden is None
    assert reading.reference_label_logprobs is None
    assert reading.logits.shape == (5, VOCAB)


def test_hidden_states_come_without_logits_if_none_are_wanted(llama: HookedModel) -> None:
    requests = {
        "alone": Request("forget", hidden=0, logits=False),
        "with": Request("forget", hidden=0),
        "elsewhere": Request("retain", hidden=0, logits=False, reference="hidden"),
    }
    readings = draw(feed(llama, requests))
    assert [readings[name].logits.shape[1] for name in requests] == [0, VOCAB, 0]
    one, other = readings["alone"], readings["with"]
    assert one.hidden is not None and other.hidden is not None
    assert torch.equal(one.hidden, other.hidden) and torch.equal(one.labels, other.labels)
    elsewhere = readings["elsewhere"]
    assert elsewhere.hidden is not None and elsewhere.reference_hidden is not None
    assert elsewhere.hidden.shape == (5, 32)
    assert (elsewhere.hidden - elsewhere.reference_hidden).abs().max() < 1e-5


def test_only_training_phrasings_and_training_text_are_fed(llama: HookedModel) -> None:
    requests = {
        "forget": Request("forget", positions="all"),
        "retain": Request("retain"),
        "text": Request("text"),
    }
    readings = draw(feed(llama, requests))
    assert spoken(llama, readings["forget"]) == ["Bo plays golf", "Who is Bo? A golf", "Al plays polo"]
    assert spoken(llama, readings["retain"]) == [" judo"]
    assert sorted(spoken(llama, readings["text"])) == sorted([TEXT[0], TEXT[2]])


def test_gradients_reach_the_weights_that_ask_for_them_and_no_reference(llama: HookedModel) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    leaf = llama.params[name].detach().clone().requires_grad_()
    requests = {
        "one": Request("forget", hidden=0, reference="logprobs"),
        "two": Request("forget", hidden=1, reference="hidden"),
    }
    readings = draw(feed(llama, requests, trained={name: leaf}), {name: leaf})
    one, two = readings["one"], readings["two"]
    one.logits.sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0
    assert one.hidden is not None and not one.hidden.requires_grad
    assert two.hidden is not None and two.hidden.requires_grad
    for reference in (one.reference_logprobs, two.reference_hidden):
        assert reference is not None and not reference.requires_grad
    assert all(parameter.grad is None for parameter in llama.params.values())


@pytest.mark.parametrize("memory", [0, 1 << 24])
@pytest.mark.parametrize("entry", [0, 1])
def test_a_reference_is_the_unedited_models_however_weights_have_moved(
    llama: HookedModel, entry: int, memory: int
) -> None:
    new = changes(llama, entry=1)
    requests = {"one": Request("forget", reference="logprobs")}
    source = feed(llama, requests, MANY, trained=new, entry=entry, memory=memory, batch_size=4)
    for scale in (1.0, -2.0, 0.0, 1.0, 0.0):
        moved = {name: llama.params[name].detach().lerp(value, scale) for name, value in new.items()}
        reading = draw(source, moved)["one"]
        assert reading.reference_logprobs is not None
        apart = float((reading.reference_logprobs - reading.logits.log_softmax(-1)).abs().max())
        assert apart > 0.1 if scale else apart < 1e-4


def test_what_cannot_change_is_computed_once_for_each_example(llama: HookedModel) -> None:
    requests = {"one": Request("forget", reference="label_logprobs"), "two": Request("text")}
    source = feed(llama, requests, MANY, entry=1, batch_size=8)
    for _ in range(12):
        draw(source)
    # Entry states of 20 questions and 20 texts, and 20 references.
    assert source.computed() == 60


def test_no_hook_is_left_behind(llama: HookedModel) -> None:
    source = feed(llama, {"one": Request("forget", hidden=1)}, entry=1)
    draw(source)
    for model in (llama.hf, source.runner.hm.hf):
        assert not any(module._forward_hooks for module in model.modules())


# -- what is refused ------------------------------------------------------------------------------------


NO_NEW = replace(FORGET[1], new=None)


@pytest.mark.parametrize(
    ("facts", "read", "message"),
    [
        (
            Facts(RETAIN),
            Request("forget"),
            r"reads the forget set and it is empty; .*Fact\(..., split='forget'\)",
        ),
        (
            Facts(FORGET),
            Request("retain"),
            "the retain set and it is empty; .*or set the objective's weight of",
        ),
        (
            Facts(FORGET),
            Request("text"),
            r"the facts have none; give Facts\(..., text=\[...\]\) or .*text=0.0",
        ),
        (
            Facts([NO_NEW]),
            Request("forget", "new"),
            r"'Al plays' \(forget\) has no new answer.*=.*Forget\(\)",
        ),
        (
            Facts([NO_NEW]),
            Request("forget", "foil"),
            "has no foil.*give the fact foil=..., or use",
        ),
    ],
)
def test_what_cannot_be_read_says_what_to_give(
    llama: HookedModel, facts: Facts, read: Request, message: str
) -> None:
    with pytest.raises(FactError, match=message):
        feed(llama, {"one": read}, facts)


@pytest.mark.parametrize(
    ("parts", "batch_size", "message"),
    [
        (3, 32, "micro_batches is 3, and a step takes 2 examples of the text set; .* at most 2, or a larger"),
        (4, 2, "micro_batches is 4, and a step takes 2 examples of the forget set; .* at most 2"),
    ],
)
def test_more_parts_than_examples_are_refused(
    llama: HookedModel, parts: int, batch_size: int, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        requests = {"forget": Request("forget"), **({"text": Request("text")} if batch_size > 2 else {})}
        feed(llama, requests, batch_size=batch_size, parts=parts)


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_a_block_that_is_not_there_cannot_be_read(llama: HookedModel, layer: int) -> None:
    with pytest.raises(SiteError, match=f"'one' after block {layer}; this model's blocks are 0 to 1"):
        first_block(llama, 0, {"one": Request("forget", hidden=layer)})


def test_runs_begin_no_later_than_what_is_read(llama: HookedModel) -> None:
    requests = {"one": Request("forget", hidden=0), "two": Request("retain", hidden=1)}
    assert first_block(llama, 1, requests) == 0
    assert first_block(llama, 1, {"two": requests["two"]}) == 1
    assert first_block(llama, 0, {"two": requests["two"]}) == 0
