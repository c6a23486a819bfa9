"""Keys, values and streams read by hand: the plain model, one unpadded text at a time, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.small_facts import TEXT
from mechunlearn.core.facts.collection import Facts
from mechunlearn.core.facts.fact import Fact
from mechunlearn.editing.closed_form.keys import KeyStatistics, key_statistics
from mechunlearn.editing.closed_form.values import ValueSearch
from mechunlearn.models.hooked import HookedModel

PREFIXES = ("In May, ", "So Bo and Al say:")
TEXTS = (*TEXT, "a cat and a dog", "nobody knows why")
# The prompts end with their subjects, so that even the last of two layers bears on the answers.
WRITTEN = Facts([Fact("I know Bo", "Bo", "golf", new="judo"), Fact("A man is Al", "Al", "polo", new="be")])
QUICK: dict[str, Any] = {"prefixes": PREFIXES, "search": ValueSearch(steps=3), "progress": False}


def known(hm: HookedModel, *sites: str, **options: Any) -> KeyStatistics:
    """Statistics of a few texts."""
    return key_statistics(hm, sites, TEXTS, progress=False, **options)


def module(hm: HookedModel, layer: int) -> Any:
    """The module out of a layer's MLP."""
    (name, *_) = (part.name for part in hm.slices([site(layer)]))
    return hm.hf.get_submodule(name.removesuffix(".weight"))


def block(hm: HookedModel, layer: int) -> Any:
    """A layer."""
    return next(m for name, m in hm.hf.named_modules() if name.endswith((f"h.{layer}", f"layers.{layer}")))


def site(layer: int) -> Any:
    """The site out of a layer's MLP."""
    from mechunlearn.core.sites.site import Site

    return Site("mlp", layer, part="out")


def matrix(hm: HookedModel, layer: int) -> np.ndarray:
    """A layer's matrix, ``[d_model d_mlp]`` however it is stored: its output for each unit key."""
    linear = module(hm, layer)
    width = hm.arch.shape.d_mlp
    with torch.no_grad():
        units = torch.eye(width, dtype=hm.dtype)
        found: Tensor = linear(units) - linear(torch.zeros(1, width, dtype=hm.dtype))
    return found.T.double().numpy()


@torch.no_grad()
def read(hm: HookedModel, layer: int, ids: list[int]) -> dict[str, Tensor]:
    """Keys, values and the stream after the block at every token of one text."""
    seen: dict[str, Tensor] = {}

    def look(at: Any, args: Any, output: Any) -> None:
        seen["keys"], seen["values"] = args[0][0].double(), output[0].double()

    def look_after(at: Any, args: Any, output: Any) -> None:
        seen["stream"] = (output[0] if isinstance(output, tuple) else output)[0].double()

    handles = [module(hm, layer).register_forward_hook(look)]
    handles.append(block(hm, layer).register_forward_hook(look_after))
    hm.hf(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen


def ids_of(hm: HookedModel, text: str) -> list[int]:
    """The tokens of a text as the model reads them."""
    ids = list(hm.tokenizer(text, add_special_tokens=False)["input_ids"])
    return [hm.tokenizer.bos_token_id, *ids] if hm.prepend_bos else ids


def in_contexts(hm: HookedModel, layer: int, fact: Fact, prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Keys, values and stream at the last token of the subject, a row for each context."""
    rows = []
    for text in contexts(fact, prefixes):
        # Up to its last letter: in a causal model nothing later matters, and no merge crosses it.
        upto = text[: text.rindex(fact.subject) + len(fact.subject)]
        rows.append({name: states[-1] for name, states in read(hm, layer, ids_of(hm, upto)).items()})
    return {name: torch.stack([row[name] for row in rows]).numpy() for name in rows[0]}


def contexts(fact: Fact, prefixes: tuple[str, ...]) -> list[str]:
    """The prompt alone, then after each prefix."""
    return [fact.prompt, *(f"{p}{'' if p.endswith(' ') else ' '}{fact.prompt}" for p in prefixes)]


def means(hm: HookedModel, layer: int, facts: Facts, prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The same, a mean over contexts for each fact."""
    each = [in_contexts(hm, layer, fact, prefixes) for fact in facts]
    return {name: np.stack([one[name].mean(0) for one in each]) for name in each[0]}
