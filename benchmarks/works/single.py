"""The time of one residual-stream patch in other tools, beside this library's share of its sweep.

The sites and the batch are those of ``resid_all``. Nothing is aimed at here: it is there to see that the
time of a patch is the time of a forward pass, whatever the tool.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import PatchTask, Prompts
from benchmarks.work import Peer, Work
from benchmarks.works.resid import captured, swept, unpatched


def per_site(setting: PatchTask) -> Work:
    """One hooked forward pass per site: plain hooks, nnsight, pyvene."""
    prompts = setting.prompts()
    return Work(
        "per_site",
        setting.layers * setting.length,
        lambda state: swept(setting, prompts, state),
        (_plain(setting, prompts), _nnsight(setting, prompts), _pyvene(setting, prompts)),
        baseline=lambda: unpatched(setting, prompts),
        prepare=lambda: captured(setting, prompts),
        note="reported, without a target",
    )


def _states(setting: PatchTask, prompts: Prompts) -> list[Tensor]:
    """The clean residual stream before every block."""
    found: list[Tensor] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    # Not by output_hidden_states, which a model that nnsight has traced no longer fills.
    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in setting.blocks]
    try:
        with torch.no_grad():
            setting.plain(prompts.clean)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _plain(setting: PatchTask, prompts: Prompts) -> Peer:
    def run(states: list[Tensor], sites: Sequence[int]) -> Tensor:
        found = []
        for site in sites:
            layer, position = divmod(site, setting.length)

            def write(
                module: Any, args: Any, kwargs: Any, layer: int = layer, position: int = position
            ) -> tuple[Any, Any]:
                state = args[0] if args else kwargs["hidden_states"]
                state = state.clone()
                state[:, position] = states[layer][:, position]
                return (state, *args[1:]), {k: v for k, v in kwargs.items() if k != "hidden_states"}

            handle = setting.blocks[layer].register_forward_pre_hook(write, with_kwargs=True)
            try:
                with torch.no_grad():
                    found.append(prompts.difference(setting.plain(prompts.corrupt).logits))
            finally:
                handle.remove()
        return torch.stack(found)

    return Peer("plain Hugging Face hook", run, lambda: _states(setting, prompts), sample=setting.sample)


def _nnsight(setting: PatchTask, prompts: Prompts) -> Peer:
    name, missing = _installed("nnsight")
    if missing:
        return Peer(name, _cannot, missing=missing)
    model = import_module("nnsight").NNsight(setting.plain)
    inner = model.transformer.h if hasattr(setting.plain, "transformer") else model.model.layers

    def run(states: list[Tensor], sites: Sequence[int]) -> Tensor:
        found = []
        for site in sites:
            layer, position = divmod(site, setting.length)
            with torch.no_grad(), model.trace(prompts.corrupt):
                inner[layer].input[:, position] = states[layer][:, position]
                logits = model.lm_head.output.save()
            found.append(prompts.difference(logits))
        return torch.stack(found)

    return Peer(name, run, lambda: _states(setting, prompts), sample=setting.sample)


def _pyvene(setting: PatchTask, prompts: Prompts) -> Peer:
    name, missing = _installed("pyvene")
    if missing:
        return Peer(name, _cannot, missing=missing)
    pyvene = import_module("pyvene")

    def run(states: list[Tensor], sites: Sequence[int]) -> Tensor:
        found = []
        for site in sites:
            layer, position = divmod(site, setting.length)
            config = pyvene.IntervenableConfig(
                [{"layer": layer, "component": "block_input", "unit": "pos"}],
                intervention_types=pyvene.VanillaIntervention,
            )
            model = pyvene.IntervenableModel(config, model=setting.plain)
            with torch.no_grad():
                _, after = model(
                    {"input_ids": prompts.corrupt},
                    [{"input_ids": prompts.clean}],
                    {"sources->base": position},
                )
            found.append(prompts.difference(after.logits))
        return torch.stack(found)

    return Peer(f"{name} (two forward passes)", run, sample=setting.sample)


def _installed(package: str) -> tuple[str, str]:
    """A package's name with its version, and what to do where it is not installed."""
    try:
        return f"{package} {version(package)}", ""
    except PackageNotFoundError:
        return (
            package,
            f"not installed: pip install -c constraints.txt -e '.[bench]', or pip install {package}",
        )


def _cannot(state: Any, sites: Sequence[int]) -> Tensor:
    raise RuntimeError("this peer is not installed")
