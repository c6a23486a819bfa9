"""Run a model with hooks and caches, with HookedTransformer's interface.

1. The input becomes token ids with an attention mask (``tokens``).
2. Every requested name is checked before anything runs, and every hook counts its runs (``hook_checks``).
3. TransformerLens runs the model, and removes the hooks at the end, also after an error.
4. A hook that never fired, or an activation that was never cached, is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

from jaxtyping import Int
from torch import Tensor

from mechunlearn.errors import HookError
from mechunlearn.models.arch import Arch
from mechunlearn.models.generation import Generation
from mechunlearn.models.hook_checks import Name, Pair, Requested, check_name, never_fired
from mechunlearn.models.inputs import Words

if TYPE_CHECKING:
    from transformer_lens import ActivationCache
    from transformer_lens.hook_points import HookPoint

Returns = Literal["logits", "loss", "both"] | None
"""The result of a run: logits, mean loss, both as a pair, or nothing."""


class RunMethods(Generation):
    """The methods of a model that run it, with hooks and caches."""

    arch: Arch

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """All hook points by name, HookedTransformer's names included."""
        return dict(self.bridge.hook_dict)

    def reset_hooks(self) -> None:
        """Remove every hook that was added through ``hm.bridge``, except permanent ones."""
        self.bridge.reset_hooks()

    def __call__(
        self,
        input: Words,
        *,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        prepend_bos: bool | None = None,
        return_type: Returns = "logits",
        stop_at_layer: int | None = None,
    ) -> Any:
        """Run the model, hooks included.

        Args:
            input: a string, strings, or token ids [batch pos].
            attention_mask: 1 for tokens, 0 for padding; None means that ids have no padding.
            prepend_bos: overrides the model's own, for strings.
            return_type: ``"logits"`` [batch pos d_vocab], ``"loss"`` (mean over unpadded tokens), ``"both"``.
            stop_at_layer: return the residual stream that enters this layer instead.

        Example:
            >>> mu.world.model()("Mary Lee plays the sport of").ndim
            3
        """
        tokens, mask = self.encode(input, attention_mask=attention_mask, prepend_bos=prepend_bos)
        return self.bridge(tokens, attention_mask=mask, return_type=return_type, stop_at_layer=stop_at_layer)

    def _check(self, names: Iterable[Name]) -> None:
        points = self.bridge.hook_dict
        for name in (name for name in names if isinstance(name, str)):
            check_name(name, points)
            try:  # TransformerLens checks the hook point alone, so any function will do
                self.bridge.check_hooks_to_add(points[name], name, print)
            except ValueError as error:
                raise HookError(f"{error} (on hm.bridge; until then the hook would never fire)") from error

    @contextmanager
    def hooks(self, fwd_hooks: Iterable[Pair] = (), bwd_hooks: Iterable[Pair] = ()) -> Iterator[Self]:
        """Set hooks inside a ``with`` block; each must fire there at least once.

        Args:
            fwd_hooks: ``(name, function)``; ``function(activation, hook=…)`` returns a new one or None.
            bwd_hooks: the same for gradients; run the backward pass inside the block.

        Raises:
            HookError: a name does not exist (at once), or a hook never fired (at the end).

        Example:
            >>> hm, seen = mu.world.model(), []
            >>> with hm.hooks([("hook_embed", lambda x, hook: seen.append(x.shape))]):
            ...     _ = hm("Mary Lee plays")
            >>> len(seen)
            1
        """
        forward, backward = Requested(fwd_hooks, direction="fwd"), Requested(bwd_hooks, direction="bwd")
        self._check([*forward.names, *backward.names])
        with self.bridge.hooks(fwd_hooks=forward.pairs, bwd_hooks=backward.pairs):
            yield self
        forward.require_fired(self.arch.architecture)
        backward.require_fired(self.arch.architecture)

    def run_with_hooks(
        self,
        input: Words,
        *,
        fwd_hooks: Iterable[Pair] = (),
        bwd_hooks: Iterable[Pair] = (),
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        prepend_bos: bool | None = None,
        return_type: Returns = "logits",
        stop_at_layer: int | None = None,
    ) -> Any:
        """Run the model once with hooks; gradient hooks fire when the result is differentiated, later.

        Args:
            input: as for calling the model.
            fwd_hooks: ``(name, function)`` pairs for activations.
            bwd_hooks: pairs for gradients; it is checked that the run passes their hook points.
            attention_mask: as for calling the model.
            prepend_bos: as for calling the model.
            return_type: as for calling the model.
            stop_at_layer: as for calling the model.

        Raises:
            HookError: a name does not exist, or a hook never fired.

        Example:
            >>> halve = ("blocks.0.hook_mlp_out", lambda activation, hook: activation / 2)
            >>> _ = mu.world.model().run_with_hooks("Mary Lee plays", fwd_hooks=[halve])
        """
        later = list(bwd_hooks)
        # A gradient reaches a point only if the forward run passes it; hooks without effect check that now.
        visits: list[Pair] = [(name, lambda tensor, hook: None) for name, _ in later]
        with self.hooks([*fwd_hooks, *visits]), self.bridge.hooks(bwd_hooks=later):
            return self(
                input, attention_mask=attention_mask, prepend_bos=prepend_bos, return_type=return_type,
                stop_at_layer=stop_at_layer,
            )  # fmt: skip

    def run_with_cache(
        self,
        input: Words,
        *,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        prepend_bos: bool | None = None,
        return_type: Returns = "logits",
        stop_at_layer: int | None = None,
    ) -> tuple[Any, ActivationCache]:
        """Run the model and keep activations, detached.

        Args:
            input: as for calling the model.
            names_filter: the hook points to keep: names, or a function of the name; None for all.
            attention_mask: as for calling the model.
            prepend_bos: as for calling the model.
            return_type: as for calling the model.
            stop_at_layer: as for calling the model.

        Raises:
            HookError: a name does not exist, or the run never reached it.

        Example:
            >>> _, cache = mu.world.model().run_with_cache("Mary Lee plays", names_filter="hook_embed")
            >>> "hook_embed" in cache
            True
        """
        names = [names_filter] if isinstance(names_filter, str) else names_filter
        if isinstance(names, Sequence):
            names = list(names)
            self._check(names)
        tokens, mask = self.encode(input, attention_mask=attention_mask, prepend_bos=prepend_bos)
        output, cache = self.bridge.run_with_cache(
            tokens,
            names_filter=names,
            attention_mask=mask,
            return_type=return_type,
            stop_at_layer=stop_at_layer,
        )
        if isinstance(names, list):
            missed = [name for name in names if name not in cache.cache_dict]
            if missed:
                raise HookError(never_fired(missed, self.arch.architecture))
        return output, cache
