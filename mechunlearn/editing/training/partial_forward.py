"""Run a plain model from the middle, with some of its weights as functions of what is trained.

1. The runner has a module tree of its own over the model's tensors. Frozen weights are frozen here,
   whatever the user has set; a trained weight is set to a tensor that autograd follows.
2. Blocks below the first edited one give what they gave before any edit. Their last output, the *entry
   state*, is computed once. A run that is given it skips these blocks: they pass on what they are called
   with, and the first edited block gets the entry state instead. All else (masks, rotations, position
   numbers) the model computes itself, so this works for any family.
3. Where no logits are read, a run ends after the last block that is read.
4. A model is checked before it is trusted: entered from the middle, it must give its own logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mechunlearn.editing.objectives.requests import Request
from mechunlearn.editing.training.activation_cache import CacheBudget
from mechunlearn.errors import SiteError
from mechunlearn.models.activations import StopRun
from mechunlearn.models.agreement import close
from mechunlearn.models.families import family_of
from mechunlearn.models.working_copy import working_copy

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True)
class Output:
    """The logits at the requested positions, and the residual stream after each requested block."""

    logits: Float[Tensor, "row column d_vocab"]
    hidden: Mapping[int, Float[Tensor, "row pos d_model"]]


@dataclass(eq=False)
class Runner:
    """A working copy of a model that can be entered at block ``entry``; 0 if no block can be skipped.

    ``checkpointing`` recomputes the insides of blocks in the backward pass instead of keeping them.
    ``reason`` tells why the whole model is run each time; empty if it is entered.
    """

    hm: HookedModel
    entry: int
    checkpointing: bool = False
    reason: str = ""
    _uses: dict[str, list[tuple[nn.Module, str]]] = field(default_factory=dict)
    # Of the run in progress: what it enters with, where it ends, which blocks it reads, and their outputs.
    _state: Tensor | None = None
    _last: int | None = None
    _read: frozenset[int] = frozenset()
    _hidden: dict[int, Tensor] = field(default_factory=dict)
    _wrapped: bool = False
    """Whether blocks return a tuple, as in some families."""

    @classmethod
    def of(
        cls, hm: HookedModel, trained: Iterable[str], *, entry: int, checkpointing: bool = False
    ) -> Runner:
        """A runner over a model's tensors, checked on two short rows.

        ``trained`` names the parameters that :meth:`set_weights` will set; ``entry`` is the first block that
        may change.
        """
        runner = cls(working_copy(hm), entry, checkpointing)
        runner._freeze()
        runner._uses = {name: runner._uses_of(name) for name in trained}
        blocks: Any = runner.hm.hf.get_submodule(family_of(hm.arch.architecture).block)
        for layer, block in enumerate(blocks):
            block.forward = partial(runner._block, layer, block.forward)
        if entry:
            runner.reason = runner._problem()
            runner.entry = 0 if runner.reason else entry
        return runner

    @property
    def enters(self) -> bool:
        """Whether runs may begin at :attr:`entry`."""
        return self.entry > 0

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set parameters, named when the runner was made, to tensors that gradients may flow through."""
        for name, weight in weights.items():
            for module, attribute in self._uses[name]:
                setattr(module, attribute, weight)

    def run(
        self,
        tokens: Int[Tensor, "row pos"],
        mask: Int[Tensor, "row pos"],
        *,
        columns: Int[Tensor, "column"],
        hidden: Iterable[int] = (),
        state: Float[Tensor, "row pos d_model"] | None = None,
    ) -> Output:
        """Run some rows; ``mask`` is 1 at real tokens.

        ``columns`` are the positions whose logits are read; with none, nothing above the last block of
        ``hidden``, the blocks whose outputs are read, is run. With an entry state, no block below is.
        """
        self._state, self._read, self._hidden = state, frozenset(hidden), {}
        self._last = None if len(columns) else max(self._read)
        try:
            inputs = {"input_ids": tokens, "attention_mask": mask, "use_cache": False}
            logits = self.hm.hf(**inputs, logits_to_keep=columns).logits
        except StopRun:
            logits = next(iter(self._hidden.values())).new_empty(len(tokens), 0, 0)
        finally:
            states, self._hidden = self._hidden, {}
            self._state, self._last, self._read = None, None, frozenset()
        return Output(logits, states)

    def states(self, tokens: Int[Tensor, "row pos"], mask: Int[Tensor, "row pos"]) -> Tensor:
        """The entry states of some rows: the residual stream before block :attr:`entry`."""
        none = torch.empty(0, dtype=torch.long, device=tokens.device)
        with torch.no_grad():
            return self.run(tokens, mask, columns=none, hidden=[self.entry - 1]).hidden[self.entry - 1]

    @contextmanager
    def remembering(self, memory: dict[bytes, Tensor], budget: CacheBudget) -> Iterator[None]:
        """Skip the blocks below for inputs that were run before, whoever runs the model.

        ``memory`` holds the entry states by the bytes of their inputs; it is filled here, within ``budget``.
        """
        keys: list[bytes] = []

        def begin(module: Any, args: Any, inputs: Any) -> None:
            fed = inputs["input_ids"], inputs["attention_mask"]
            parts = (part.cpu().numpy().tobytes() for part in fed)
            # Rows of one shape and of another may have the same bytes.
            keys[:] = [b"".join([str(tuple(fed[0].shape)).encode(), *parts])]
            self._state = memory.get(keys[0])
            self._read = frozenset([self.entry - 1] if self._state is None else [])

        def end(module: Any, args: Any, output: Any) -> None:
            state = self._hidden.get(self.entry - 1)
            if state is not None and state.nbytes <= budget.memory:
                budget.memory -= state.nbytes
                memory[keys[0]] = state
            self._state, self._read, self._hidden = None, frozenset(), {}

        if not self.enters:
            yield
            return
        handles = [
            self.hm.hf.register_forward_pre_hook(begin, with_kwargs=True),
            self.hm.hf.register_forward_hook(end),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            # A run that raised has not come to its end.
            self._state, self._read, self._hidden = None, frozenset(), {}

    def _freeze(self) -> None:
        """Freeze the parameters of the runner's own modules; the user's keep their settings."""
        frozen: dict[int, nn.Parameter] = {}
        for module in self.hm.hf.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    # A parameter that is used twice stays one: whoever looks for its uses compares objects.
                    detached = nn.Parameter(parameter.detach(), requires_grad=False)
                    module._parameters[name] = frozen.setdefault(id(parameter), detached)

    def _uses_of(self, name: str) -> list[tuple[nn.Module, str]]:
        """The modules and attributes that hold a parameter, tied ones included.

        It becomes a plain attribute there, since a module's parameters cannot be functions of other tensors.
        """
        path, _, attribute = name.rpartition(".")
        parameter = self.hm.hf.get_submodule(path)._parameters[attribute]
        uses = [
            (module, key)
            for module in self.hm.hf.modules()
            for key, value in module._parameters.items()
            if value is parameter
        ]
        for module, key in uses:
            del module._parameters[key]
            setattr(module, key, parameter.detach() if parameter is not None else None)
        return uses

    def _block(self, layer: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Take the place of a block: skip it, enter it with the entry state, or run it as it is."""
        if self._state is not None and layer < self.entry:
            skipped = args[0] if args else kwargs["hidden_states"]
            # Known by now: the check of the model ran all blocks before it skipped any.
            return (skipped,) if self._wrapped else skipped
        if self._state is not None and layer == self.entry:
            args, kwargs = _entering(args, kwargs, self._state)
        if self.checkpointing and torch.is_grad_enabled():
            out = checkpoint(forward, *args, use_reentrant=False, **kwargs)
        else:
            out = forward(*args, **kwargs)
        self._wrapped = isinstance(out, tuple)
        if layer in self._read:
            self._hidden[layer] = out[0] if self._wrapped else out
        if layer == self._last:
            raise StopRun
        return out

    def _problem(self) -> str:
        """Say why the model cannot be entered from the middle; empty if it can."""
        generator = torch.Generator().manual_seed(0)
        embedding = self.hm.hf.get_input_embeddings().weight
        tokens = torch.randint(len(embedding), (2, 6), generator=generator).to(embedding.device)
        mask = torch.ones_like(tokens)
        mask[-1, -1] = 0
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        try:
            with torch.no_grad():
                expected = self.run(tokens, mask, columns=columns).logits
                state = self.states(tokens, mask)
                # Other tokens in between, so that nothing a lower block left behind is right by accident.
                self.run(tokens.flip(0), mask, columns=columns)
                actual = self.run(tokens, mask, columns=columns, state=state).logits
        # A subclass of RuntimeError, but no sign of a model that cannot be entered.
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
            return f"its blocks cannot be entered from the middle ({type(error).__name__}: {error})"
        real = mask.bool()
        broken = not bool(expected[real].isfinite().all())  # training says so itself, at its first step
        if broken or close(actual[real], expected[real]):
            return ""
        return f"entered at block {self.entry} it does not give its own logits"


def _entering(args: tuple[Any, ...], kwargs: dict[str, Any], state: Tensor) -> tuple[Any, dict[str, Any]]:
    """The arguments of a block with another residual stream."""
    if args:
        return (state, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": state}


def first_block(hm: HookedModel, entry: int, requests: Mapping[str, Request]) -> int:
    """The block at which runs may begin: the first edited one (``entry``), or an earlier one that is read.

    A ``SiteError`` is raised if a block whose output is read does not exist.
    """
    layers = hm.sites.shape.n_layers
    read = {name: request.hidden for name, request in requests.items() if request.hidden is not None}
    for name, layer in read.items():
        if not 0 <= layer < layers:
            raise SiteError(
                f"the objective reads {name!r} after block {layer}; this model's blocks are 0 to {layers - 1}"
            )
    return min([entry, *read.values()])
