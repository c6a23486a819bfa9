"""Path patching by its definition: two hooked runs of one unpadded prompt per sender, by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import tiny_models
from helpers.patching_twin import AllLogits, Change, Prompt, logits, ragged, values, writes
from helpers.tiny_models import VOCAB, hf_model, memory_tokenizer
from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.block_functions import BlockFunctions
from mechunlearn.localization.engine.cached_run import cached_run
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.path_patching.paths import Paths
from mechunlearn.localization.path_patching.sweep import PathTask, path_sweep
from mechunlearn.models.activations import activations
from mechunlearn.models.hooked import HookedModel

LENGTHS = (6, 3)
SENDERS = ("embed", "L0.head[1]", "L1.attn", "L1.mlp", "L2.head[3]")
PAIRS: Any = [
    ("L1.mlp", "freeze"),
    ("L0.head[1]", "recompute"),
    ("embed", "recompute"),
    ("L1.attn", "freeze"),
    ("L1.mlp", "recompute"),
    ("L2.head[3]", "freeze"),
]


@cache
def deep(family: str) -> HookedModel:
    """A family's tiny model with four layers, in float64 (read-only)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_models._COMMON, "num_hidden_layers", 4)
        return HookedModel.from_hf(hf_model(family), memory_tokenizer()).to(torch.float64)


def receiver_sets(hm: HookedModel) -> list[list[str] | None]:
    """Every kind of receiver, with others in the same layer and in others, and values alone."""
    keys = "kv" if hm.arch.shape.grouped else "head"
    middle = [] if hm.arch.parallel else ["L2.resid_mid"]
    return [
        None,
        ["L2.head[3].q", f"L2.{keys}[1].v", f"L3.{keys}[0].k"],
        ["L0.mlp", "L2.mlp", "L2.attn", "L3.mlp"],
        ["L1.resid_post", *middle, "L3.head[1].q"],
        [f"L2.{keys}[{unit}].v" for unit in (0, 1)],
        [f"L3.{keys}[1].v"],
    ]


class Twin:
    """One sender, one set of receivers, one prompt: record what receivers read, then run again."""

    def __init__(
        self, hm: HookedModel, own: Prompt, other: Prompt, extra: Sequence[tuple[str, Change]] = ()
    ) -> None:
        self.hm, self.own, self.extra = hm, own, list(extra)
        self.here, self.there = self.seen(own), self.seen(other)

    def seen(self, prompt: Prompt) -> dict[str, Tensor]:
        states = values(self.hm, prompt, self.extra)

        def keep(x: Tensor) -> Tensor:
            states["hook_embed"] = x
            return x

        logits(self.hm, prompt, [("hook_embed", keep)])
        return states

    def held(self, sender: Site, mlps: str, at: Sequence[int]) -> list[tuple[str, Change]]:
        """All heads as they are, MLPs too unless recomputed, and the sender as in the other run."""
        kinds = ("attn.hook_z", "hook_mlp_out") if mlps == "freeze" else ("attn.hook_z",)
        names = [f"blocks.{layer}.{kind}" for layer in range(self.hm.arch.shape.n_layers) for kind in kinds]
        held = [(name, lambda x, name=name: self.here[name]) for name in names]
        if sender.kind != "embed":
            return [*self.extra, *held, *writes(self.hm, [sender], self.there, at)]

        def embed(x: Tensor) -> Tensor:
            x = x.clone()
            x[0, list(at)] = self.there["hook_embed"][0, list(at)]
            return x

        return [*self.extra, *held, ("hook_embed", embed)]

    def run(self, sender: Site, receivers: Sequence[str] | None, mlps: str, at: Sequence[int]) -> Tensor:
        """The logits of the patched run."""
        first = self.held(sender, mlps, at)
        if receivers is None:
            return logits(self.hm, self.own, first)
        sites = [Site.parse(text) for text in receivers]
        layers = [site.layer or 0 for site in sites if site.kind == "mlp"]
        inputs: dict[int, Tensor] = {}
        with self.reading(layers, lambda layer, x: inputs.setdefault(layer, x.clone())):
            recorded = values(self.hm, self.own, first)
        others = [piece for site in sites if site.kind != "mlp" for piece in self.pieces(site)]
        everywhere = range(self.own.tokens.shape[1])
        second = [*self.extra, *writes(self.hm, others, recorded, everywhere)]
        with self.reading(layers, lambda layer, x: inputs[layer]):
            return logits(self.hm, self.own, second)

    def pieces(self, site: Site) -> list[Site]:
        if site.kind != "attn":
            return [site]
        shape = self.hm.arch.shape
        counts = {"q": shape.n_heads, "k": shape.n_kv_heads, "v": shape.n_kv_heads}
        return [
            Site("head", site.layer, unit, part) for part, count in counts.items() for unit in range(count)
        ]

    @contextmanager
    def reading(self, layers: Sequence[int], change: Any) -> Iterator[None]:
        """Stand between the stream and the norm of some MLPs, whose own way past them is left alone."""
        with ExitStack() as stack:
            for layer in layers:
                norm = self.hm.bridge.blocks[layer].ln2
                handle = norm.register_forward_pre_hook(
                    lambda m, args, layer=layer: (change(layer, args[0]),)
                )
                stack.callback(handle.remove)
            yield


class Setup:
    """Prompts of different length in two versions: one replaced at its ends, the other everywhere."""

    def __init__(self, hm: HookedModel, lengths: Sequence[int] = LENGTHS) -> None:
        self.hm = hm
        drawn = torch.Generator().manual_seed(3)
        self.own, self.others = (
            [torch.randint(2, VOCAB, (1, length), generator=drawn) for length in lengths] for _ in range(2)
        )
        size = torch.tensor(lengths)
        # Read at the last position and in the middle, where nothing is replaced.
        self.read = AllLogits.at(hm, torch.stack([size - 1, size // 2], dim=1))
        self.where = (torch.arange(max(lengths)) < size[:, None])[None].clone()
        self.where[0, 0, 1 : lengths[0] - 1] = False

    def sweep(self, paths: Paths, *, budget: int | None = None, same: bool = False) -> Tensor:
        run = cached_run(self.hm, ragged(self.own), paths.run_names(BlockFunctions.of(self.hm)))
        source = activations(self.hm, ragged(self.own if same else self.others), paths.source_names())
        task = PathTask(run, source, torch.arange(len(self.own)), self.where, self.read)
        return path_sweep(Engine.of(self.hm, budget=budget), paths, task)[:, 0]

    def twins(self, extra: Sequence[tuple[str, Change]] = ()) -> list[Twin]:
        pairs = zip(self.own, self.others, strict=True)
        return [Twin(self.hm, Prompt(own), Prompt(other), extra) for own, other in pairs]

    def agree(
        self, twins: Sequence[Twin], paths: Paths, receivers: Sequence[str] | None, *actual: Tensor
    ) -> None:
        """Compare senders with the twin, each in one of the prompts."""
        for s, sender in enumerate(paths.senders):
            row = s % 2
            expected = twins[row].run(
                sender, receivers, paths.mlps, self.where[0, row].nonzero()[:, 0].tolist()
            )
            for each in actual:
                torch.testing.assert_close(
                    each[s, row], expected[self.read.positions[row]].flatten(), rtol=0.0, atol=1e-10
                )
