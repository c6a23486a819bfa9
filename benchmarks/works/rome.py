"""ROME's causal trace of one prompt, beside one hooked forward pass per site as its own code does it.

The subject's embeddings are noised in ten samples. At every (layer, position) the clean state after the
block, or the MLP outputs of ten layers around it, is restored; read is the probability of the clean run's
first choice. The peer runs the clean row with the ten noised ones, as ROME does, and computes all logits.
It uses plain hooks on the Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.models import PatchTask
from benchmarks.work import Peer, Work
from benchmarks.works.reading import Probability
from mechunlearn.core.sites.site import Site
from mechunlearn.localization.engine.cached_run import CachedRun, cached_run
from mechunlearn.localization.engine.engine import Engine
from mechunlearn.localization.engine.patches import Patches, Write, writes_of
from mechunlearn.models.activations import activations
from mechunlearn.models.encoding.batch import Batch

SUBJECT, SAMPLES, WINDOW = slice(2, 6), 10, 10
_NOTE = (
    "one prompt, 10 samples; tokens 2 to 5, counted from 0, are noised. Before them restoring changes "
    "nothing: this library answers 2 of 24 positions by the baseline"
)


def rome_states(setting: PatchTask) -> Work:
    """The state after every block, at every position."""
    sites = [(Site("resid_post", layer),) for layer in range(setting.layers)]
    modules = [(block,) for block in setting.blocks]
    return _trace(setting, "rome_states", sites, modules, target=7.0)


def rome_mlp_windows(setting: PatchTask) -> Work:
    """The MLP outputs of ten layers around every layer, at every position."""
    width = min(WINDOW, setting.layers // 2)
    near = [
        range(max(0, layer - width // 2), min(setting.layers, layer + (width + 1) // 2))
        for layer in range(setting.layers)
    ]
    sites = [tuple(Site("mlp", each) for each in layers) for layers in near]
    modules = [tuple(setting.mlp(each) for each in layers) for layers in near]
    return _trace(setting, "rome_mlp_windows", sites, modules, target=4.0)


@dataclass(frozen=True, eq=False)
class _Noised:
    """One prompt, the noise of its subject's embeddings, and what the clean run says next."""

    tokens: Int[Tensor, "1 pos"]
    noise: Float[Tensor, "sample token d_model"]
    answer: int

    def into(self, embedded: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """A copy with noise in the last rows."""
        changed = embedded.clone()
        changed[-len(self.noise) :, SUBJECT] += self.noise.to(embedded)
        return changed


def _trace(
    setting: PatchTask,
    name: str,
    sites: Sequence[tuple[Site, ...]],
    modules: Sequence[tuple[Any, ...]],
    *,
    target: float,
) -> Work:
    tokens = setting.prompts(rows=1).clean
    with torch.no_grad():
        embedded = setting.embedding(tokens[:, SUBJECT])
        answer = int(setting.plain(tokens).logits[0, -1].argmax())
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(SAMPLES, *embedded.shape[1:], generator=generator)
    writes = [writes_of(setting.hm, some) for some in sites]
    noise = 3 * embedded.float().std() * drawn.to(embedded.device)
    noised = _Noised(tokens, noise.to(embedded), answer)
    return Work(
        name,
        len(sites) * setting.length,
        lambda state: _ours(setting, noised, writes, state),
        (_hooked(setting, noised, modules),),
        baseline=lambda: _forward(setting, noised)[1:],
        prepare=lambda: _captured(setting, noised, writes),
        target=target,
        note=_NOTE,
    )


def _captured(
    setting: PatchTask, noised: _Noised, writes: Sequence[tuple[Write, ...]]
) -> tuple[CachedRun, Mapping[str, Tensor]]:
    """The noised runs, and the clean activations."""
    names = [write.name for some in writes for write in some]
    source = activations(setting.hm, Batch.of_tokens(noised.tokens), [*names, "hook_embed"])
    embedded = noised.into(source["hook_embed"].expand(SAMPLES, -1, -1))
    rows = Batch.of_tokens(noised.tokens.expand(SAMPLES, -1))
    return cached_run(setting.hm, rows, names, embedded=embedded), source


def _ours(
    setting: PatchTask,
    noised: _Noised,
    writes: Sequence[tuple[Write, ...]],
    state: tuple[CachedRun, Mapping[str, Tensor]],
) -> Float[Tensor, "site sample"]:
    length, device = setting.length, setting.hm.device
    everywhere = torch.eye(length, dtype=torch.bool, device=device)[:, None].expand(length, SAMPLES, length)
    one = torch.zeros(1, SAMPLES, dtype=torch.long, device=device)
    patches = Patches.grid(writes, everywhere, source=one)
    readout = Probability(noised.tokens.expand(SAMPLES, -1), noised.answer)
    return Engine.of(setting.hm).sweep(*state, patches, readout).view(-1, SAMPLES)


def _hooked(setting: PatchTask, noised: _Noised, modules: Sequence[tuple[Any, ...]]) -> Peer:
    def run(state: None, sites: Sequence[int]) -> Tensor:
        found = []
        for site in sites:
            layer, position = divmod(site, setting.length)
            found.append(_forward(setting, noised, modules[layer], position)[1:])
        return torch.stack(found)

    name = f"plain Hugging Face hooks, one forward pass of {SAMPLES + 1} rows per site, as ROME"
    return Peer(name, run, sample=setting.sample)


def _forward(
    setting: PatchTask, noised: _Noised, modules: Sequence[Any] = (), position: int = 0
) -> Float[Tensor, "row"]:
    """The answer's probability in the clean row and the noised ones, with the clean row's values restored."""
    with ExitStack() as stack, torch.no_grad():
        embed = setting.embedding.register_forward_hook(lambda module, args, out: noised.into(out))
        stack.callback(embed.remove)
        for module in modules:
            stack.callback(module.register_forward_hook(_restore(position)).remove)
        logits: Tensor = setting.plain(noised.tokens.expand(SAMPLES + 1, -1)).logits
        return logits[:, -1].softmax(-1)[:, noised.answer]


def _restore(position: int) -> Callable[..., None]:
    def write(module: Any, args: Any, out: Any) -> None:
        state = out[0] if isinstance(out, tuple) else out
        state[1:, position] = state[0, position]

    return write
