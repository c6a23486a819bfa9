"""Run a plain model from the middle, with some of its weights as functions of what is trained.

1. The runner has module trees of its own over the model's tensors. Frozen weights are frozen here, whatever
   the user has set; a weight that is trained is put in as a tensor that autograd follows.
2. Blocks below the first edited one give what they gave before any edit. Their last output, the *entry
   state*, is computed once and given back later: these blocks then pass, and the first edited block
   receives the state. Everything else (masks, rotations, position numbers) the model computes itself, so
   no family is known by name.
3. Where no logits are wanted, a run ends after the last block that is read.
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

from mechunlearn.editing.training.activation_cache import CacheBudget
from mechunlearn.models.activations import StopRun
from mechunlearn.models.agreement import close
from mechunlearn.models.families import family_of
from mechunlearn.models.working_copy import working_copy

if TYPE_CHECKING:
    from mechunlearn.models.hooked import HookedModel


@dataclass(frozen=True)
class Output:
    """What a run gave.

    Args:
        logits: at the columns asked for; of no columns if none were.
        hidden: the residual stream after the blocks asked for.
    """

    logits: Float[Tensor, "row column d_vocab"]
    hidden: Mapping[int, Float[Tensor, "row pos d_model"]]


@dataclass(eq=False)
class Runner:
    """A model that can be entered at one block.

    Args:
        hm: a fork of its own.
        entry: the first block that may change; 0 if none can be skipped.
        checkpointing: recompute the insides of blocks in the backward pass instead of keeping them.
        reason: why the whole model is run each time; empty if it is entered at ``entry``.
    """

    hm: HookedModel
    entry: int
    checkpointing: bool = False
    reason: str = ""
    _places: dict[str, list[tuple[nn.Module, str]]] = field(default_factory=dict)
    _given: Tensor | None = None
    _stop: int | None = None
    _seen: dict[int, Tensor] = field(default_factory=dict)
    _wanted: frozenset[int] = frozenset()
    _wrapped: bool = False

    @classmethod
    def of(
        cls, hm: HookedModel, trained: Iterable[str], *, entry: int, checkpointing: bool = False
    ) -> Runner:
        """A runner over a model's tensors, checked on two short rows.

        Args:
            hm: the model, which is only read.
            trained: names of the parameters that :meth:`put` will set.
            entry: the first block that may change.
            checkpointing: recompute the insides of blocks in the backward pass.
        """
        runner = cls(working_copy(hm), entry, checkpointing)
        runner._own()
        runner._places = {name: runner._uses(name) for name in trained}
        blocks = hm.hf.get_submodule(family_of(hm.arch.architecture).block)
        own = runner.hm.hf.get_submodule(family_of(hm.arch.architecture).block)
        for layer in range(len(blocks)):
            own[layer].forward = partial(runner._block, layer, own[layer].forward)
        if entry:
            runner.reason = runner._problem()
            runner.entry = 0 if runner.reason else entry
        return runner

    @property
    def enters(self) -> bool:
        """Whether runs may begin at :attr:`entry`."""
        return self.entry > 0

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Set trained parameters to tensors that gradients may flow through.

        Args:
            weights: by name; each one of those the runner was made for.
        """
        for name, weight in weights.items():
            for module, attribute in self._places[name]:
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
        """Run the model with the weights that were put in.

        Args:
            tokens: what is fed.
            mask: 1 for tokens, 0 for padding.
            columns: positions whose logits are wanted; with none, nothing above ``hidden`` is run.
            hidden: blocks whose outputs are wanted.
            state: the entry state, if it is known: then the blocks below are skipped.
        """
        self._given, self._wanted, self._seen = state, frozenset(hidden), {}
        self._stop = None if len(columns) else max(self._wanted)
        try:
            given = {"input_ids": tokens, "attention_mask": mask, "use_cache": False}
            logits = self.hm.hf(**given, logits_to_keep=columns).logits
        except StopRun:
            logits = next(iter(self._seen.values())).new_empty(len(tokens), 0, 0)
        finally:
            found, self._seen = self._seen, {}
            self._given, self._stop, self._wanted = None, None, frozenset()
        return Output(logits, found)

    def states(self, tokens: Int[Tensor, "row pos"], mask: Int[Tensor, "row pos"]) -> Tensor:
        """The entry states of some rows: the residual stream before block :attr:`entry`."""
        none = torch.empty(0, dtype=torch.long, device=tokens.device)
        with torch.no_grad():
            return self.run(tokens, mask, columns=none, hidden=[self.entry - 1]).hidden[self.entry - 1]

    @contextmanager
    def remembering(self, memory: dict[bytes, Tensor], room: CacheBudget) -> Iterator[None]:
        """Skip the blocks below for inputs that were run before, whoever runs the model.

        Args:
            memory: the entry states by the bytes of the tokens; filled here.
            room: what they may take from.
        """
        keys: list[bytes] = []

        def begin(module: Any, args: Any, given: Any) -> None:
            fed = given["input_ids"], given["attention_mask"]
            parts = (part.cpu().numpy().tobytes() for part in fed)
            keys[:] = [b"".join([str(tuple(fed[0].shape)).encode(), *parts])]
            self._given = memory.get(keys[0])
            self._wanted = frozenset([self.entry - 1] if self._given is None else [])

        def end(module: Any, args: Any, output: Any) -> None:
            state = self._seen.get(self.entry - 1)
            if state is not None and state.nbytes <= room.memory:
                room.memory -= state.nbytes
                memory[keys[0]] = state
            self._given, self._wanted, self._seen = None, frozenset(), {}

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
            self._given, self._wanted, self._seen = None, frozenset(), {}

    def _own(self) -> None:
        """Freeze the parameters of the runner's own modules; the user's keep their settings."""
        frozen: dict[int, nn.Parameter] = {}
        for module in self.hm.hf.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    own = nn.Parameter(parameter.detach(), requires_grad=False)
                    module._parameters[name] = frozen.setdefault(id(parameter), own)

    def _uses(self, name: str) -> list[tuple[nn.Module, str]]:
        """Where a parameter is used, tied uses included; it becomes a plain attribute there."""
        path, _, attribute = name.rpartition(".")
        parameter = self.hm.hf.get_submodule(path)._parameters[attribute]
        places = [
            (module, key)
            for module in self.hm.hf.modules()
            for key, value in module._parameters.items()
            if value is parameter
        ]
        for module, key in places:
            del module._parameters[key]
            setattr(module, key, parameter.detach() if parameter is not None else None)
        return places

    def _block(self, layer: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for a block: pass, enter with the kept state, or run."""
        if self._given is not None and layer < self.entry:
            passed = args[0] if args else kwargs["hidden_states"]
            return (passed,) if self._wrapped else passed
        if self._given is not None and layer == self.entry:
            args, kwargs = _entering(args, kwargs, self._given)
        if self.checkpointing and torch.is_grad_enabled():
            out = checkpoint(forward, *args, use_reentrant=False, **kwargs)
        else:
            out = forward(*args, **kwargs)
        self._wrapped = isinstance(out, tuple)
        if layer in self._wanted:
            self._seen[layer] = out[0] if self._wrapped else out
        if layer == self._stop:
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
                wanted = self.run(tokens, mask, columns=columns).logits
                state = self.states(tokens, mask)
                # In between other tokens, so that nothing a lower block left behind is right by accident.
                self.run(tokens.flip(0), mask, columns=columns)
                found = self.run(tokens, mask, columns=columns, state=state).logits
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
            return f"its blocks cannot be entered from the middle ({type(error).__name__}: {error})"
        real = mask.bool()
        broken = not bool(wanted[real].isfinite().all())  # training says so itself, at its first step
        if broken or close(found[real], wanted[real]):
            return ""
        return f"entered at block {self.entry} it does not give its own logits"


def _entering(args: tuple[Any, ...], kwargs: dict[str, Any], state: Tensor) -> tuple[Any, dict[str, Any]]:
    """The arguments of a block with another residual stream."""
    if args:
        return (state, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": state}
