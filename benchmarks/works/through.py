"""What early MLPs do through the values of three heads, beside two hooked forward passes per sender.

A sender writes what it would write after the corrupt prompt; attention below the receivers stays as it is
after the clean one, and the MLPs in between either stay too or are computed anew. The values that the
receivers would then have are put into a clean run. The peer takes one pass for each of the two steps, as
path patching is usually written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import torch
from torch import Tensor

from benchmarks.models import PatchTask, Prompts
from benchmarks.work import Peer, Work
from benchmarks.works.direct import both, captured, clean, path_effects, write
from mechunlearn.core.hooks import Hook, cache
from mechunlearn.core.sites.site import Site
from mechunlearn.localization.path_patching.paths import Paths

HEADS = 3


def mlp_to_v_frozen(setting: PatchTask) -> Work:
    """MLPs in between stay as they are."""
    return _through(setting, "mlp_to_v_frozen", frozen=True, target=15.0)


def mlp_to_v_recomputed(setting: PatchTask) -> Work:
    """MLPs in between follow."""
    return _through(setting, "mlp_to_v_recomputed", frozen=False, target=6.5)


def _through(setting: PatchTask, name: str, *, frozen: bool, target: float) -> Work:
    prompts, layer = setting.prompts(), 3 * setting.layers // 4
    shape = setting.hm.arch.shape
    kind = "kv" if shape.grouped else "head"
    count = min(HEADS, shape.n_kv_heads)
    receivers = [Site(kind, layer, index, "v") for index in range(count)]
    senders = [Site("mlp", before) for before in range(layer)]
    paths = Paths.of(setting.hm, senders, receivers, mlps="freeze" if frozen else "recompute")
    return Work(
        name,
        len(senders),
        lambda state: path_effects(setting, paths, state),
        (_hooked(setting, prompts, layer, count, frozen=frozen),),
        baseline=lambda: clean(setting, prompts),
        prepare=lambda: captured(setting, prompts, paths),
        target=target,
        note=f"MLPs of layers 0 to {layer - 1}, v of {count} heads of layer {layer}",
    )


def _hooked(setting: PatchTask, prompts: Prompts, layer: int, count: int, *, frozen: bool) -> Peer:
    bridge, received = setting.hm.bridge, f"blocks.{layer}.attn.hook_v"

    def one(own: Mapping[str, Tensor], other: Mapping[str, Tensor], sender: int) -> Tensor:
        store: dict[str, Tensor] = {}
        hooks = [
            write(f"blocks.{below}.attn.hook_z", own[f"blocks.{below}.attn.hook_z"]) for below in range(layer)
        ]
        if frozen:
            names = [f"blocks.{below}.hook_mlp_out" for below in range(layer) if below != sender]
            hooks += [write(name, own[name]) for name in names]
        name = f"blocks.{sender}.hook_mlp_out"
        hooks += [write(name, other[name]), cache(received, store)]
        bridge.run_with_hooks(prompts.clean, fwd_hooks=hooks)
        value = store[received]

        def put(activation: Tensor, hook: object = None) -> Tensor:
            changed = activation.clone()
            changed[:, :, :count] = value[:, :, :count]
            return changed

        logits: Tensor = bridge.run_with_hooks(prompts.clean, fwd_hooks=[Hook(received, put)])
        return prompts.difference(logits)

    def run(state: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], sites: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return torch.stack([one(*state, sender) for sender in sites])

    name = f"transformer-lens {version('transformer-lens')} run_with_hooks, twice per sender"
    return Peer(name, run, lambda: both(setting, prompts))
