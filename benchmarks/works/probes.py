"""Residual streams of 1,000 prompts at one position for all layers, beside ``run_with_cache``.

The position is the last one of every prompt, so that nothing can be left out for being later. Both sides
take the prompts in the same batches, read the same names and keep the same numbers; the peer's cost per
batch is uniform, so it is timed on some of the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.models import PatchTask, Prompts
from benchmarks.work import Peer, Work
from mechunlearn.models.activations import capture, probe_sites

PROMPTS, BATCH = 1000, 40


def probe_capture(setting: PatchTask) -> Work:
    """The embedding, every resid_mid and every resid_post, at the last position."""
    prompts, size = drawn(setting)
    batches = len(prompts.clean) // size
    return Work(
        "probe_capture",
        batches,
        lambda state: ours(setting, prompts, size),
        (
            Peer(
                f"transformer-lens {version('transformer-lens')} run_with_cache",
                lambda state, sites: cached(setting, prompts, size, sites),
                sample=setting.sample,
            ),
        ),
        target=1.0,
        note=f"{len(prompts.clean)} prompts in batches of {size}, which are the sites here; last position",
    )


def drawn(setting: PatchTask) -> tuple[Prompts, int]:
    """The prompts, and how many run together."""
    return (setting.prompts(rows=12), 3) if setting.quick else (setting.prompts(rows=PROMPTS), BATCH)


def names(setting: PatchTask) -> list[str]:
    """The hook points that are read."""
    return [setting.hm.arch.hooks(site)[0].name for site in probe_sites(setting.hm)]


def ours(setting: PatchTask, prompts: Prompts, size: int) -> Float[Tensor, "batch name row d_model"]:
    """This library's capture."""
    where = torch.full_like(prompts.clean[:, :1], setting.length - 1)
    found = capture(setting.hm.bridge, prompts.clean, names(setting), where, batch_size=size)
    return torch.stack([found[name][:, 0].view(-1, size, found[name].shape[-1]) for name in found], dim=1)


def cached(
    setting: PatchTask, prompts: Prompts, size: int, batches: Sequence[int]
) -> Float[Tensor, "batch name row d_model"]:
    """TransformerLens's cache of the same names, of which the last position is kept."""
    wanted, kept = names(setting), []
    for number in batches:
        tokens = prompts.clean[number * size : (number + 1) * size]
        with torch.no_grad():
            _, cache = setting.hm.bridge.run_with_cache(tokens, names_filter=wanted)
        kept.append(torch.stack([cache[name][:, -1].cpu() for name in wanted]))
    return torch.stack(kept)
