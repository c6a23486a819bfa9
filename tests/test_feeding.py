"""An objective is given exactly what it declared to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from conftest import LAYERS, VOCAB
from small import FACTS, FORGET, RETAIN, TEXT
from torch import Tensor

from mechunlearn.editing.feeding import Feed
from mechunlearn.errors import FactError, SiteError
from mechunlearn.facts import Fact, Facts
from mechunlearn.model import HookedModel
from mechunlearn.objectives import Read, Reading

WORDS = {f"prompt {i:02}": f"word {i:02}" for i in range(20)}
MANY = Facts([Fact(prompt, "prompt", word) for prompt, word in WORDS.items()], text=[*WORDS] * 2, name="many")


def feed(
    hm: HookedModel,
    reads: Mapping[str, Read],
    facts: Facts = FACTS,
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> Feed:
    return Feed.of(hm, reads, facts, batch_size=batch_size, seed=seed)


def params(hm: HookedModel) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in hm.params.items()}


def changed(hm: HookedModel) -> HookedModel:
    """A model that differs from another in every matrix."""
    random = torch.Generator().manual_seed(1)
    noise = {
        name: p + 0.05 * torch.randn(p.shape, dtype=p.dtype, generator=random)
        for name, p in hm.params.items()
        if p.ndim == 2
    }
    return hm.fork(noise)


def spoken(hm: HookedModel, reading: Reading) -> list[str]:
    """The labels of each example as text."""
    rows = range(int(reading.row.max()) + 1)
    return [hm.tokenizer.decode(reading.labels[reading.row == row]) for row in rows]


def by_itself(hm: HookedModel, text: str, layer: int) -> tuple[Tensor, Tensor]:
    """Logits and the residual stream after a block for one text, alone and unpadded, by TransformerLens."""
    name = f"blocks.{layer}.hook_resid_post"
    logits, cache = hm.run_with_cache(text, names_filter=name)
    return logits[0].detach(), cache[name][0].detach()


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_readings_are_what_the_model_computes_on_each_text_alone(
    hm: HookedModel, family: str, positions: Any
) -> None:
    # Hugging Face's RMS norms and rotations are in float32 whatever the precision of the model.
    tolerance = 1e-12 if family in ("gpt2", "neox") else 1e-5
    before = hm.to(torch.float64)
    after = changed(before)
    reads = {
        f"after {layer}": Read("forget", "new", positions=positions, hidden=layer, reference=True)
        for layer in range(LAYERS)
    }
    readings = feed(before, reads).draw(params(after))
    texts = [f"{ask.prompt} {ask.new}" for fact in FORGET for ask in fact.phrasings("train")]
    for layer, row in product(range(LAYERS), range(len(texts))):
        reading, tokens = readings[f"after {layer}"], before.to_tokens(texts[row])[0]
        here = reading.row == row
        count = int(here.sum())
        assert torch.equal(reading.labels[here], tokens[-count:])
        assert count == (5 if positions == "answer" else len(tokens) - 1)
        logits, hidden = by_itself(after, texts[row], layer)
        was, hidden_before = by_itself(before, texts[row], layer)
        for given, expected in (
            (reading.logits, logits),
            (reading.hidden, hidden),
            (reading.reference_logprobs, was.log_softmax(-1)),
            (reading.reference_hidden, hidden_before),
        ):
            assert given is not None
            assert (given[here] - expected[-count - 1 : -1]).abs().max() < tolerance


def test_what_was_not_asked_for_is_not_there(llama: HookedModel) -> None:
    reading = feed(llama, {"plain": Read("retain")}).draw(params(llama))["plain"]
    assert reading.hidden is reading.reference_logprobs is reading.reference_hidden is None
    assert reading.logits.shape == (5, VOCAB)


def test_only_training_phrasings_and_training_text_are_fed(llama: HookedModel) -> None:
    reads = {"forget": Read("forget", positions="all"), "retain": Read("retain"), "text": Read("text")}
    readings = feed(llama, reads).draw(params(llama))
    assert spoken(llama, readings["forget"]) == ["Bo plays golf", "Who is Bo? A golf", "Al plays polo"]
    assert spoken(llama, readings["retain"]) == [" judo"]
    assert sorted(spoken(llama, readings["text"])) == sorted([TEXT[0], TEXT[2]])


def test_reads_of_the_same_set_share_their_examples_and_one_run(llama: HookedModel) -> None:
    reads = {"short": Read("forget"), "long": Read("forget", positions="all"), "new": Read("forget", "new")}
    source = feed(llama, reads, MANY_NEW, batch_size=3)
    ran: list[int] = []
    source.runner.register_forward_hook(lambda module, args, output: ran.append(len(output.logits)))
    readings = source.draw(params(llama))
    assert ran == [3, 3]
    assert spoken(llama, readings["short"]) == [text[-8:] for text in spoken(llama, readings["long"])]


FORGETTING = {"forget": Read("forget")}
MANY_NEW = Facts([fact.replace(new="other") for fact in MANY])


def test_no_example_comes_twice_before_all_came_once(llama: HookedModel) -> None:
    source = feed(llama, FORGETTING, MANY, batch_size=8, seed=3)
    seen = [word for _ in range(5) for word in spoken(llama, source.draw(params(llama))["forget"])]
    assert sorted(seen[:20]) == sorted(seen[20:]) == sorted(f" {word}" for word in WORDS.values())
    assert seen[:20] != seen[20:]
    again = feed(llama, FORGETTING, MANY, batch_size=8, seed=3)
    assert spoken(llama, again.draw(params(llama))["forget"]) == seen[:8]
    other = feed(llama, FORGETTING, MANY, batch_size=8, seed=4)
    assert spoken(llama, other.draw(params(llama))["forget"]) != seen[:8]


@pytest.mark.parametrize(
    ("batch_size", "questions", "texts"), [(8, 8, 2), (5, 5, 2), (1, 1, 1), (99, 20, 20)]
)
def test_a_step_takes_a_quarter_as_many_texts_as_questions(
    llama: HookedModel, batch_size: int, questions: int, texts: int
) -> None:
    reads = {"forget": Read("forget"), "text": Read("text")}
    source = feed(llama, reads, MANY, batch_size=batch_size)
    readings = source.draw(params(llama))
    assert len(set(readings["forget"].row.tolist())) == questions
    assert len(set(readings["text"].row.tolist())) == texts


def test_gradients_reach_the_weights_that_ask_for_them_and_no_reference(llama: HookedModel) -> None:
    leaf = llama.params["model.layers.1.mlp.down_proj.weight"].detach().clone().requires_grad_()
    given = {**params(llama), "model.layers.1.mlp.down_proj.weight": leaf}
    reading = feed(llama, {"one": Read("forget", hidden=0, reference=True)}).draw(given)["one"]
    reading.logits.sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0
    assert reading.hidden is not None and not reading.hidden.requires_grad
    assert reading.reference_logprobs is not None and not reading.reference_logprobs.requires_grad
    assert all(parameter.grad is None for parameter in llama.params.values())


def test_no_hook_is_left_behind(llama: HookedModel) -> None:
    source = feed(llama, {"one": Read("forget", hidden=1)})
    source.draw(params(llama))
    for model in (llama.hf, source.runner):
        assert not any(module._forward_hooks for module in model.modules())


NO_NEW = replace(FORGET[1], new=None)


@pytest.mark.parametrize(
    ("facts", "read", "message"),
    [
        (
            Facts(RETAIN),
            Read("forget"),
            r"reads the forget set and it is empty; .*Fact\(..., split='forget'\)",
        ),
        (Facts(FORGET), Read("retain"), "the retain set and it is empty; .*or set the objective's weight of"),
        (Facts(FORGET), Read("text"), r"the facts have none; give Facts\(..., text=\[...\]\) or .*text=0.0"),
        (Facts([NO_NEW]), Read("forget", "new"), r"'Al plays' \(forget\) has no new answer.*=.*Forget\(\)"),
        (Facts([NO_NEW]), Read("forget", "foil"), "the fact 'Al plays' has no foil; give it `foil=`"),
    ],
)
def test_what_cannot_be_read_says_what_to_give(
    llama: HookedModel, facts: Facts, read: Read, message: str
) -> None:
    with pytest.raises(FactError, match=message):
        feed(llama, {"one": read}, facts)


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_a_block_that_is_not_there_cannot_be_read(llama: HookedModel, layer: int) -> None:
    with pytest.raises(SiteError, match=f"'one' after block {layer}; this model's blocks are 0 to 1"):
        feed(llama, {"one": Read("forget", hidden=layer)})
