"""Set-ups of the engine: prompts, sites, depths and tolerances."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from helpers.patching_twin import AllLogits, Prompt, logits, ragged, values, writes
from helpers.patching_twin import full_softmax as full_softmax
from helpers.tiny_models import VOCAB, hf_model, memory_tokenizer
from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.cached_run import cached_run
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.patches import Patches, writes_of
from mechunlearn.models.activations import activations
from mechunlearn.models.hooked import HookedModel

LENGTHS = (7, 20, 1)


TIGHT: Any = {"rtol": 0.0, "atol": 1e-10}


@cache
def wide(family: str) -> HookedModel:
    """A family's tiny model in float64 (read-only)."""
    return HookedModel.from_hf(hf_model(family), memory_tokenizer()).to(torch.float64)


def tiers(hm: HookedModel, **options: Any) -> list[Engine]:
    """Every way of running: fused blocks, the bridge's blocks, and complete hooked runs."""
    return [Engine(hm, *why, **options) for why in (("", ""), ("", "asked"), ("asked", "asked"))]


def prompts(seed: int, lengths: Sequence[int] = LENGTHS, shared: int = 0) -> list[Tensor]:
    """Random tokens per row, the first of which do not depend on the seed."""
    rows = []
    for row, length in enumerate(lengths):
        drawn = [
            torch.randint(2, VOCAB, (1, length), generator=torch.Generator().manual_seed(s + row))
            for s in (0, seed)
        ]
        rows.append(torch.where(torch.arange(length) < min(shared, length - 1), drawn[0], drawn[1]))
    return rows


def some_sites(hm: HookedModel) -> list[tuple[Site, ...]]:
    """Every kind of site, alone and in sets, in the first and the last layer."""
    shape, last = hm.arch.shape, hm.arch.shape.n_layers - 1
    keys = "kv" if shape.grouped else "head"
    alone = [Site(kind, layer) for kind in ("resid_pre", "resid_post", "attn", "mlp") for layer in (0, last)]
    heads = [Site("head", layer, shape.n_heads - 1, part) for part in (None, "q") for layer in (0, last)]
    groups = [Site(keys, layer, 1, part) for part in "kv" for layer in (0, last)]
    patterns = [Site("pattern", layer, 2) for layer in (0, last)]
    sets = [
        (Site("neuron", 0, 3), Site("neuron", 0, 7)),
        (Site("head", last, 0), Site("head", last, 2), Site("head", 0, 1)),
        (Site("attn", 0), Site("mlp", 0), Site("mlp", last)),
        (Site("mlp", 0), Site("resid_post", 0), Site(keys, last, 0, "v")),
        (Site(keys, 0, 0, "k"), Site(keys, 0, 0, "v"), Site("pattern", last, 0), Site("neuron", last, 1)),
        (Site("resid_pre", 0), Site("resid_pre", last)),
    ]
    if not hm.arch.parallel:
        mids = [Site("resid_mid", layer) for layer in (0, last)]
        sets += [
            *((mid,) for mid in mids),
            (Site("resid_pre", 0), mids[0], mids[1]),
            (mids[0], Site("mlp", 0)),
        ]
    return [*((site,) for site in (*alone, *heads, *groups, *patterns)), *sets]


def some_places(lengths: Sequence[int]) -> Tensor:
    """The first position, the last, three in the middle, all of them, and none [place row pos]."""
    position, size = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    inside = position < size
    middle = (position >= size // 2 - 1) & (position <= size // 2 + 1)
    return torch.stack(
        [(position == 0) & inside, position == size - 1, middle & inside, inside, inside & False]
    )


class Setup:
    """A run and a source of ragged prompts, read at the last position and in the middle, and its twin."""

    def __init__(
        self,
        hm: HookedModel,
        interventions: Sequence[tuple[Site, ...]],
        lengths: Sequence[int] = LENGTHS,
        *,
        share: float = 1.0,
    ) -> None:
        self.hm, self.interventions = hm, interventions
        self.own, self.others = (
            prompts(0, lengths),
            prompts(100, lengths, shared=2 if min(lengths) < 9 else 0),
        )
        table = [writes_of(hm, sites) for sites in interventions]
        patches = Patches.grid(table, some_places(lengths))
        order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))
        self.patches = patches.pick(order[: int(share * len(patches))])
        self.run = cached_run(hm, ragged(self.own), self.patches.names)
        self.source = activations(hm, ragged(self.others), self.patches.names)
        size = torch.tensor(lengths)
        self.read = AllLogits.at(hm, torch.stack([size - 1, size // 2], dim=1))

    def sweep(self, engine: Engine, patches: Patches | None = None) -> Tensor:
        return engine.sweep(self.run, self.source, patches or self.patches, self.read)

    def twin(self) -> Tensor:
        """Each job by itself, in a complete run of its own prompt."""
        given = [values(self.hm, Prompt(prompt)) for prompt in self.others]
        results = []
        for i, row, where in zip(
            self.patches.intervention, self.patches.row.tolist(), self.patches.where, strict=True
        ):
            changes = writes(self.hm, self.interventions[int(i)], given[row], where.nonzero()[:, 0])
            run = logits(self.hm, Prompt(self.own[row]), changes)
            results.append(run[self.read.positions[row]].flatten())
        return torch.stack(results)


@cache
def deep() -> HookedModel:
    """Five layers, so that windows begin, end and are cut in different ones."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).train(False)
        for parameter in (p for p in model.parameters() if p.ndim > 1):
            torch.nn.init.normal_(parameter, std=0.3)
    return HookedModel.from_hf(model, memory_tokenizer()).to(torch.float64)
