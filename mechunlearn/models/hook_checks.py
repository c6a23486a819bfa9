"""Check that requested hooks fire: a hook that silently never runs gives a wrong result.

TransformerLens lists hook points that some families never reach, and accepts hooks there. So:

1. ``check_name`` refuses names that do not exist before anything runs, and gives the nearest that do.
2. ``Requested`` counts the calls of each function, whose arguments and result stay as they are.
3. ``require_fired`` raises for every hook that was never reached, and says why that may be.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from mechunlearn.errors import HookError

Name = str | Callable[[str], bool]
"""A hook's name, or a function that is true for the names to hook."""

Pair = tuple[Name, Callable[..., Any]]
"""A hook as TransformerLens takes it."""

_NEVER = {
    "pos_embed": "models with rotary positions add none to the residual stream, so nothing passes here",
    "attn.qkv.": "fused Q, K, V are split first; use attn.hook_q, attn.hook_k and attn.hook_v",
    "rotary_emb.hook_out": "use rotary_emb.hook_cos and rotary_emb.hook_sin",
    "hook_rot_": "this family rotates inside its attention; use attn.hook_q and attn.hook_k",
    "hook_hidden_states": "attention reads its input elsewhere; use ln1.hook_out",
}


def check_name(name: str, points: Mapping[str, Any]) -> None:
    """Raise HookError, with the nearest names, for a name that is not among the model's hook points."""
    if name not in points:
        near = difflib.get_close_matches(name, points, n=3, cutoff=0.5) or list(points)[:3]
        listed = ", ".join(map(repr, near))
        raise HookError(f"this model has no hook {name!r}; the nearest are {listed}. All: list(hm.hook_dict)")


class Requested:
    """Hooks of activations (``"fwd"``) or gradients (``"bwd"``) that count how often they ran."""

    def __init__(self, hooks: Iterable[Pair], *, direction: Literal["fwd", "bwd"]) -> None:
        pairs = list(hooks)
        self.direction = direction
        self.names = [name for name, _ in pairs]
        self.counts = [0] * len(pairs)
        self.pairs: list[Pair] = [(name, self._counted(i, fn)) for i, (name, fn) in enumerate(pairs)]

    def _counted(self, index: int, fn: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Any, hook: Any) -> Any:
            self.counts[index] += 1
            return fn(tensor, hook=hook)

        return counted

    def require_fired(self, architecture: str) -> None:
        """Raise HookError if a hook never ran; the message names each, and why that may be."""
        silent = [name for name, count in zip(self.names, self.counts, strict=True) if count == 0]
        if silent:
            raise HookError(never_fired(silent, architecture, self.direction))


def never_fired(names: Iterable[Name], architecture: str, direction: str = "fwd") -> str:
    """Return a message that lists hooks that never fired, and why that may be."""
    silent = list(names)
    listed = ", ".join(repr(name) if isinstance(name, str) else "a filter of names" for name in silent)
    reasons = {why for name in silent if isinstance(name, str) for key, why in _NEVER.items() if key in name}
    run = "a backward pass" if direction == "bwd" else "a run of the model (hm.hf has no hooks)"
    why = "; ".join(sorted(reasons)) or f"{run} has to reach it while the hook is in place"
    return f"hook {listed} was requested and never fired in {architecture}: {why}"
