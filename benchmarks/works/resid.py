"""Activation patching of the residual stream at every layer and position, beside TransformerLens.

Activations of the clean prompts are written into the corrupted run, one layer and position at a time, in
all prompts of the batch; read is the difference of two logits after the last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.models import PatchTask, Prompts
from benchmarks.work import Peer, Work
from benchmarks.works.reading import Difference
from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.cached_run import CachedRun, cached_run
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.patches import Patches, Write, writes_of
from mechunlearn.models.activations import activations
from mechunlearn.models.encoding.batch import Batch


def resid_all(setting: PatchTask) -> Work:
    """Every (layer, position) of resid_pre; the prompts of a pair differ everywhere."""
    return _resid(setting, "resid_all", setting.prompts(), target=4.5)


def resid_prefix8(setting: PatchTask) -> Work:
    """The same where the prompts of a pair first differ at token 8 of 24."""
    same = setting.length // 3
    note = f"the first {same} of {setting.length} tokens are the same: patches there change nothing"
    return _resid(setting, "resid_prefix8", setting.prompts(same=same), target=9.0, note=note)


def _resid(setting: PatchTask, name: str, prompts: Prompts, *, target: float, note: str = "") -> Work:
    return Work(
        name,
        setting.layers * setting.length,
        lambda state: swept(setting, prompts, state),
        (_transformer_lens(setting, prompts),),
        baseline=lambda: unpatched(setting, prompts),
        prepare=lambda: captured(setting, prompts),
        again=lambda state: swept(setting, prompts, state, budget=3 * setting.length),
        target=target,
        note=note,
    )


def captured(setting: PatchTask, prompts: Prompts) -> tuple[CachedRun, Mapping[str, Tensor]]:
    """The corrupted run, and the clean activations."""
    names = [write.name for some in _writes(setting) for write in some]
    run = cached_run(setting.hm, Batch.of_tokens(prompts.corrupt), names)
    return run, activations(setting.hm, Batch.of_tokens(prompts.clean), names)


def swept(
    setting: PatchTask,
    prompts: Prompts,
    state: tuple[CachedRun, Mapping[str, Tensor]],
    *,
    budget: int | None = None,
) -> Float[Tensor, "site row"]:
    """This library: all sites, layer by layer."""
    rows, length, device = len(prompts.clean), setting.length, setting.hm.device
    everywhere = torch.eye(length, dtype=torch.bool, device=device)[:, None].expand(length, rows, length)
    patches = Patches.grid(_writes(setting), everywhere)
    engine = Engine.of(setting.hm, budget=budget)
    return engine.sweep(*state, patches, Difference(prompts)).view(-1, rows)


def _writes(setting: PatchTask) -> list[tuple[Write, ...]]:
    return [writes_of(setting.hm, [Site("resid_pre", layer)]) for layer in range(setting.layers)]


def unpatched(setting: PatchTask, prompts: Prompts) -> Float[Tensor, "row"]:
    """The corrupted run as it is."""
    with torch.no_grad():
        return prompts.difference(setting.plain(prompts.corrupt).logits)


def _transformer_lens(setting: PatchTask, prompts: Prompts) -> Peer:
    import pandas as pd
    from transformer_lens import patching

    bridge = setting.hm.bridge

    def prepare() -> object:
        with torch.no_grad():
            return bridge.run_with_cache(
                prompts.clean, names_filter=lambda name: name.endswith("hook_resid_pre")
            )[1]

    def run(cache: object, sites: Sequence[int]) -> Tensor:
        index = pd.DataFrame([divmod(site, setting.length) for site in sites], columns=["layer", "pos"])
        with torch.no_grad():
            found = patching.generic_activation_patch(
                bridge,
                prompts.corrupt,
                cache,
                prompts.difference,
                patching.layer_pos_patch_setter,
                "resid_pre",
                index_df=index,
                reduce="none",
            )
        values: Tensor = found.values
        return values

    name = f"transformer-lens {version('transformer-lens')} get_act_patch_resid_pre"
    return Peer(name, run, prepare, sample=setting.sample)
