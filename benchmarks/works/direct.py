"""The direct path of every head and MLP to the logits, beside one hooked forward pass per sender.

The sender writes what it would write after the corrupt prompt; all other heads and MLPs write what they
write after the clean one. The peer does just that, with one hook for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.models import PatchTask, Prompts
from benchmarks.work import Peer, Work
from benchmarks.works.reading import Difference
from mechunlearn.core.hooks import Hook
from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.block_functions import BlockFunctions
from mechunlearn.localization.engine.cached_run import cached_run
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.path_patching.paths import Paths
from mechunlearn.localization.path_patching.sweep import PathTask, path_sweep
from mechunlearn.models.activations import activations
from mechunlearn.models.encoding.batch import Batch


def direct_paths(setting: PatchTask) -> Work:
    """All heads, then all MLPs."""
    prompts = setting.prompts()
    layers = range(setting.layers)
    heads = [Site("head", layer, head) for layer in layers for head in range(setting.hm.arch.shape.n_heads)]
    senders = heads + [Site("mlp", layer) for layer in layers]
    paths = Paths.of(setting.hm, senders, None)
    return Work(
        "direct_paths",
        len(senders),
        # The sweep itself is nothing beside the two runs it needs, so these are counted here.
        lambda state: path_effects(setting, paths, captured(setting, prompts, paths)),
        (_hooked(setting, prompts, senders),),
        baseline=lambda: clean(setting, prompts),
        target=80.0,
        note="the two runs that this library needs are counted; its sweep alone takes hundredths of a second",
    )


def captured(setting: PatchTask, prompts: Prompts, paths: Paths) -> PathTask:
    """Both runs, with what the paths need of them."""
    run = cached_run(
        setting.hm, Batch.of_tokens(prompts.clean), paths.run_names(BlockFunctions.of(setting.hm))
    )
    source = activations(setting.hm, Batch.of_tokens(prompts.corrupt), paths.source_names())
    return PathTask.everywhere(run, source, Difference(prompts))


def path_effects(setting: PatchTask, paths: Paths, task: PathTask) -> Float[Tensor, "site row"]:
    """This library: what every sender does to the answer through the receivers."""
    return path_sweep(Engine.of(setting.hm), paths, task)[:, 0, :, 0]


def clean(setting: PatchTask, prompts: Prompts) -> Float[Tensor, "row"]:
    """The clean run as it is."""
    with torch.no_grad():
        return prompts.difference(setting.plain(prompts.clean).logits)


def writes(setting: PatchTask) -> list[str]:
    """Where all heads and MLPs write."""
    return [
        f"blocks.{layer}.{name}"
        for layer in range(setting.layers)
        for name in ("attn.hook_z", "hook_mlp_out")
    ]


def both(setting: PatchTask, prompts: Prompts) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """What they write after the clean prompts, and after the corrupt ones."""
    with torch.no_grad():
        found = [
            setting.hm.bridge.run_with_cache(tokens, names_filter=writes(setting))[1]
            for tokens in (prompts.clean, prompts.corrupt)
        ]
    return found[0], found[1]


def write(name: str, value: Tensor) -> Hook:
    """Put a value in, whatever comes."""
    return Hook(name, lambda activation, hook=None: value)


def _hooked(setting: PatchTask, prompts: Prompts, senders: Sequence[Site]) -> Peer:
    def run(state: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], sites: Sequence[int]) -> Tensor:
        own, other = state
        found = []
        for site in sites:
            point = setting.hm.arch.hooks(senders[site])[0]
            values: dict[str, Any] = {name: own[name] for name in writes(setting)}
            if point.index is None:
                values[point.name] = other[point.name]
            else:
                changed = own[point.name].clone()
                changed[:, :, point.index] = other[point.name][:, :, point.index]
                values[point.name] = changed
            hooks = [write(name, value) for name, value in values.items()]
            with torch.no_grad():
                logits = setting.hm.bridge.run_with_hooks(prompts.clean, fwd_hooks=hooks)
            found.append(prompts.difference(logits))
        return torch.stack(found)

    name = f"transformer-lens {version('transformer-lens')} run_with_hooks, once per sender"
    return Peer(name, run, lambda: both(setting, prompts), sample=setting.sample)
