"""A language model for analysis and editing: TransformerLens and Hugging Face over one set of tensors.

``HookedModel`` has the interface of HookedTransformer (``run_with_cache``, ``hooks``, ``to_tokens``, hook
names such as ``blocks.5.attn.hook_z``). It holds two module trees:

1. ``hf``, the plain Hugging Face model, is trained, counted, saved, and passed to other libraries.
2. ``bridge``, TransformerLens's TransformerBridge in raw mode (nothing folded), is hooked and cached. It is
   built at first use. Both compute the same logits, because both read the same tensors.
3. A changed model is a ``fork``: new module trees over the same tensors, with single parameters replaced.

Every run has an attention mask; strings are padded on the right (on the left only inside ``generate``);
whether a BOS token comes first is decided once, by ``prepend_bos``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechunlearn.core.sites.model_sites import ModelSites
from mechunlearn.errors import ModelError, one_of
from mechunlearn.models import identity, loading
from mechunlearn.models.arch import Arch
from mechunlearn.models.running import RunMethods
from mechunlearn.models.token_rows import Truncate
from mechunlearn.models.weights import SiteWeights, Views

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class HookedModel(RunMethods, SiteWeights, Views):
    """A decoder to analyse through TransformerLens and to edit through Hugging Face.

    Make one with ``from_pretrained``, ``from_hf`` or ``mu.world.model()``, which call the constructor.

    Attributes:
        hf: the plain Hugging Face model, in evaluation mode.
        tokenizer: the tokenizer; None if there is none.
        prepend_bos: whether strings get a BOS token in front.
        truncate: ``"left"`` if rows longer than the context lose first tokens; None if they are an error.
        arch: from sites to slices of parameters and to hooks.
        edits: the names of the edits applied so far, in order.

    Example:
        >>> hm = mu.world.model()
        >>> logits, cache = hm.run_with_cache("Mary Lee plays", names_filter="blocks.0.hook_mlp_out")
        >>> cache["blocks.0.hook_mlp_out"].shape[-1] == hm.cfg.d_model
        True
    """

    def __init__(
        self,
        hf: Any,
        tokenizer: Any,
        *,
        arch: Arch,
        prepend_bos: bool,
        truncate: Truncate = None,
        edits: tuple[str, ...] = (),
    ) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.prepend_bos = prepend_bos
        self.truncate = truncate
        self.arch = arch
        self.edits = edits

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        prepend_bos: bool | None = None,
        truncate: Truncate = None,
        **hf_kwargs: Any,
    ) -> HookedModel:
        """Load a model from a folder or from the Hugging Face Hub.

        Args:
            name_or_path: a folder written by ``save_pretrained``, or a name such as ``"gpt2"``.
            device: the device; None for Hugging Face's default (the CPU).
            dtype: precision, such as ``"bfloat16"``; None for that of the stored weights.
            revision: a branch, tag or commit on the Hub.
            prepend_bos: whether strings get a BOS token in front; None for the family's habit.
            truncate: ``"left"``: rows longer than the context lose first tokens; None: they are an error.
            **hf_kwargs: passed on to ``AutoModelForCausalLM.from_pretrained``.

        Raises:
            ModelError: there is no such model, its family is not supported, or its files are damaged.

        Example:
            >>> hm = mu.HookedModel.from_pretrained("google/gemma-2-2b", dtype="bfloat16")  # doctest: +SKIP
        """
        model, tokenizer = loading.load(name_or_path, dtype=dtype, revision=revision, **hf_kwargs)
        if device is not None:
            model = loading.cast(model, device=torch.device(device), dtype=None)
        return cls.from_hf(model, tokenizer, prepend_bos=prepend_bos, truncate=truncate)

    @classmethod
    def from_hf(
        cls,
        model: Any,
        tokenizer: Any = None,
        *,
        prepend_bos: bool | None = None,
        truncate: Truncate = None,
    ) -> HookedModel:
        """Wrap a Hugging Face model in memory; it and its tokenizer are left as they are.

        Args:
            model: a causal language model; its tensors are shared, not copied.
            tokenizer: its tokenizer; without one, inputs must be token ids.
            prepend_bos: whether strings get a BOS token in front; None for the family's habit.
            truncate: ``"left"``: rows longer than the context lose first tokens; None: they are an error.

        Raises:
            ModelError: it is no such model, or its family is not supported; the message lists those that are.

        Example:
            >>> hm = mu.HookedModel.from_hf(mu.world.model().hf)
        """
        loading.require_plain(model)
        architecture = type(model).__name__
        arch = Arch.of(architecture, model.config, dict(model.named_parameters()))
        has_bos = getattr(tokenizer, "bos_token_id", None) is not None
        prepend = arch.prepends_bos if prepend_bos is None else prepend_bos
        if truncate not in (None, "left"):
            raise ModelError(one_of("truncate", truncate, (None, "left")))
        twin = loading.twin(model)
        return cls(twin, tokenizer, arch=arch, prepend_bos=prepend and has_bos, truncate=truncate)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and tokenizer so that plain ``AutoModelForCausalLM.from_pretrained`` reads them.

        Args:
            folder: the folder; it is created if needed.

        Raises:
            ModelError: the path is a file.
        """
        loading.save(self.hf, self.tokenizer, folder)

    @cached_property
    def bridge(self) -> TransformerBridge:
        """TransformerLens's view of the same tensors, built at first use (0.2 s for a small model)."""
        bridge = loading.wrap(self.hf, self.tokenizer, prepend_bos=self.prepend_bos)
        self._copied = identity.stamps(self._copies())
        return bridge

    def _copies(self) -> dict[str, Tensor]:
        """The parameters of which the bridge holds copies."""
        names = {part.name for _, part in self.arch.joined()}
        return {name: self.params[name] for name in names}

    def refresh(self) -> None:
        """Notice what was done to ``hf`` from outside: weights loaded into it are read, adapters are refused.

        Whatever encodes text or facts calls it.

        Raises:
            ModelError: ``hf`` has adapters.
        """
        loading.refuse_adapters(self.hf)
        if any(self.params.get(name) is not tensor for name, tensor in self.hf.named_parameters()):
            identity.clear(self)
            self.__dict__.pop("params")
            self.__dict__.pop("bridge", None)
        elif "bridge" in self.__dict__ and identity.stamps(self._copies()) != self._copied:
            self.sync()

    @cached_property
    def params(self) -> Mapping[str, nn.Parameter]:
        """The parameters by Hugging Face name; tied ones once, under their first name."""
        loading.refuse_adapters(self.hf)
        return dict(self.hf.named_parameters())

    @cached_property
    def sites(self) -> ModelSites:
        """All sites of this model, as a localization; complements and controls are drawn from it."""
        return ModelSites(self.arch.shape, self.arch.count)

    @property
    def cfg(self) -> Any:
        """TransformerLens's configuration (``n_layers``, ``d_model``, ``n_heads``, …)."""
        return self.bridge.cfg

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(iter(self.params.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(iter(self.params.values())).dtype

    @property
    def identity(self) -> str:
        """Sixteen hexadecimal digits that change when any weight does (see :meth:`sync`)."""
        return identity.identity(self)

    def __repr__(self) -> str:
        """Family, sizes, precision and edits on a few lines."""
        shape, count = self.arch.shape, sum(parameter.numel() for parameter in self.params.values())
        groups = f" ({shape.n_kv_heads} key-value heads)" if shape.grouped else ""
        return (
            f"HookedModel({self.arch.architecture}: {shape.n_layers} layers, {shape.n_heads} heads{groups}, "
            f"d_model {self.hf.config.hidden_size}, d_mlp {shape.d_mlp}{' gated' if shape.gated else ''}, "
            f"{count:,} parameters in {str(self.dtype).removeprefix('torch.')} on {self.device}, "
            f"BOS {'prepended' if self.prepend_bos else 'not prepended'}"
            f"{', edits: ' + ', '.join(self.edits) if self.edits else ''})"
        )

    def sync(self) -> None:
        """Refresh the bridge's copies of weights and the identity after writing into ``params`` in place."""
        identity.clear(self)
        if "bridge" in self.__dict__:
            loading.sync(self.bridge, self.arch, self.params)
            self._copied = identity.stamps(self._copies())

    def fork(
        self, replacements: Mapping[str, Float[Tensor, "..."]] | None = None, *, edit: str | None = None
    ) -> HookedModel:
        """A new model over the same tensors, with single parameters replaced.

        Nothing is copied: writing in place into a shared parameter shows in both models.

        Args:
            replacements: new tensors by parameter name; they are used as they are, not copied.
            edit: the name of the edit that this applies, for ``edits``.

        Raises:
            EditError: a name or a shape is not the model's; the message has both shapes.

        Example:
            >>> hm = mu.world.model()
            >>> name = "model.layers.3.mlp.down_proj.weight"
            >>> half = hm.fork({name: hm.params[name] / 2})
            >>> half.identity == hm.identity
            False
        """
        return self._over(loading.twin(self.hf, replacements), edit=edit)

    def to(self, target: str | torch.device | torch.dtype) -> HookedModel:
        """The model on another device or in another precision; this one stays as it is.

        Tensors that need no change are shared, as in a fork.

        Args:
            target: a device such as ``"cuda"``, or a precision such as ``torch.bfloat16``.

        Example:
            >>> mu.world.model().to(torch.bfloat16).dtype
            torch.bfloat16
        """
        if isinstance(target, torch.dtype):
            return self._over(loading.twin(loading.cast(self.hf, device=None, dtype=target)))
        return self._over(loading.twin(loading.cast(self.hf, device=torch.device(target), dtype=None)))

    def _over(self, hf: Any, *, edit: str | None = None) -> HookedModel:
        edits = self.edits if edit is None else (*self.edits, edit)
        return HookedModel(
            hf,
            self.tokenizer,
            arch=self.arch,
            prepend_bos=self.prepend_bos,
            truncate=self.truncate,
            edits=edits,
        )

    def folded(self) -> TransformerBridge:
        """A separate bridge with folded layer norms and centred weights, for reading only.

        Direct logit attribution needs it. Its tensors are copies; it cannot be edited or saved.

        Example:
            >>> mu.world.model().folded().compatibility_mode
            True
        """
        bridge = loading.wrap(loading.with_own_tensors(self.hf), self.tokenizer, prepend_bos=self.prepend_bos)
        bridge.enable_compatibility_mode(disable_warnings=True)
        return bridge
