"""Loading a model, and building further module trees over the tensors it already has.

TransformerLens replaces the submodules of the model it wraps, so the wrapped model can no longer be trained
by other libraries or saved. Therefore:

1. ``load`` reads a plain Hugging Face model. It refuses unknown families *before* reading weights, and
   weights that do not fill the model.
2. ``twin`` copies the module tree only: ``copy.deepcopy`` with a memo that maps every tensor to itself, or
   to its replacement. Tied weights stay tied, no tensor is copied, and a fork takes milliseconds.
3. ``wrap`` builds a TransformerBridge over another twin, with a copy of the tokenizer, since TransformerLens
   adds tokens to the one it gets. ``sync`` refreshes Q, K and V where the bridge holds copies.
4. ``cast`` moves and casts the *plain* model: casting a bridge separates fused Q, K, V from what is saved.
   Buffers that are not saved (rotary frequencies) keep their precision, as they do in a model loaded anew.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechunlearn.errors import EditError, ModelError
from mechunlearn.models import attention_masks, key_value_caches
from mechunlearn.models.arch import Arch
from mechunlearn.models.families import family_of
from mechunlearn.models.progress_bars import quiet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def load(
    name_or_path: str | Path, *, dtype: str | torch.dtype | None, revision: str | None, **hf_kwargs: Any
) -> tuple[Any, Any]:
    """Read a model and its tokenizer (None where a folder has none); see ``HookedModel.from_pretrained``."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    source = str(Path(name_or_path).expanduser())
    check_folder(source)
    at = {"revision": revision} if revision else {}
    own_config = hf_kwargs.pop("config", None)
    config = own_config or _read_config(source, at)
    family_of(architecture_of(config))
    reader: Any = AutoModelForCausalLM
    # Weights that do not fit are named below; Hugging Face would only refer to its log.
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    options |= at | hf_kwargs | ({} if dtype is None else {"dtype": dtype})
    try:
        # Hugging Face may initialise weights at random; the user's random state must not change.
        with torch.random.fork_rng(devices=[]):
            model, report = reader.from_pretrained(source, config=config, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise _unreadable(source, error) from error
    _require_filled(report, source)
    if own_config is None:
        _require_all_used(report, source, config.num_hidden_layers)
    return model, _load_tokenizer(source, at)


def _read_config(source: str, at: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, **at)
    except Exception as error:
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: Exception) -> ModelError:
    return ModelError(
        f"{source!r} cannot be loaded ({type(error).__name__}: {_in_one_line(error)}). Its files may be "
        "truncated or altered, or the name is wrong or not reachable: save or download it again."
    )


def _require_all_used(report: Mapping[str, Any], source: str, layers: int) -> None:
    """Refuse weights of blocks that the configuration does not have."""
    numbers = {key: re.search(r"(?:^|\.)(\d+)\.", key) for key in sorted(report.get("unexpected_keys", ()))}
    beyond = [key for key, match in numbers.items() if match and int(match[1]) >= layers]
    if beyond:
        raise ModelError(
            f"{source!r} holds weights such as {beyond[0]!r}, but its config.json says {layers} layers. One "
            "of the files was altered: save or download the model again."
        )


def _require_filled(report: Mapping[str, Any], source: str) -> None:
    missing = sorted(report["missing_keys"]) + [str(key) for key in report.get("mismatched_keys", ())]
    if missing:
        raise ModelError(
            f"the weights in {source!r} do not fill the model: {len(missing)} parameters are missing or have "
            f"another shape, such as {missing[0]!r}. The files were truncated or altered: save or download "
            "the model again."
        )


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or "no message"


def check_folder(source: str) -> None:
    """Raise ModelError for a path that is a file, does not exist, or holds no ``config.json``."""
    path = Path(source)
    # A name on the Hub has at most one slash.
    looks_local = source.startswith((".", "/")) or source.count("/") > 1 or path.exists()
    if looks_local and not (path / "config.json").is_file():
        state = "is a folder without config.json" if path.is_dir() else "is not a folder"
        raise ModelError(
            f"{source!r} is not a model: it {state}. Give a folder written by save_pretrained (config.json, "
            "model.safetensors, tokenizer files) or a name on the Hugging Face Hub such as 'gpt2'."
        )


def _load_tokenizer(source: str, chosen: Mapping[str, str]) -> Any:
    from transformers import AutoTokenizer

    path = Path(source)
    if path.is_dir() and not any(path.glob("*token*")) and not any(path.glob("vocab*")):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, **chosen)
    except Exception as error:
        raise ModelError(
            f"the tokenizer of {source!r} cannot be loaded ({type(error).__name__}: {_in_one_line(error)}). "
            "Save it again with tokenizer.save_pretrained, or build the model with "
            "HookedModel.from_hf(model, tokenizer)."
        ) from error


def architecture_of(config: Any) -> str:
    """The causal language model class that Hugging Face builds from a configuration."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    refuse_quantized(config)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    return str(name or (config.architectures or [config.model_type])[0])


def require_plain(model: Any) -> None:
    """Raise ModelError for anything but an unquantized Hugging Face model in memory."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        actual = repr(model) if isinstance(model, str | Path) else f"a {type(model).__name__}"
        raise ModelError(
            f"from_hf wraps a Hugging Face model in memory, such as a LlamaForCausalLM; not {actual}. "
            "Names and folders go to HookedModel.from_pretrained."
        )
    refuse_quantized(model.config)
    refuse_adapters(model)


def refuse_adapters(model: Any) -> None:
    """Raise ModelError for a model with adapters: what they add belongs to no parameter of the model."""
    for module in model.modules():
        if type(module).__module__.partition(".")[0] == "peft":
            raise ModelError(
                f"the model has adapters (peft's {type(module).__name__}), which edits and hooks would miss; "
                "merge them first, model.merge_and_unload(), and wrap the result with HookedModel.from_hf"
            )


def refuse_quantized(config: Any) -> None:
    """Raise ModelError for quantized weights: a slice of codes cannot be edited."""
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError("quantized models cannot be edited: load them in float32, bfloat16 or float16")


def save(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write a plain model and its tokenizer, if any, into a folder."""
    # To a file Hugging Face would write nothing, and only log it.
    if Path(folder).is_file():
        raise ModelError(f"{str(folder)!r} is a file; give a folder to save the model in")
    refuse_adapters(model)
    with quiet():
        model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@torch.inference_mode(False)  # a parameter made in that mode could never be trained
def twin(model: Any, replacements: Mapping[str, Float[Tensor, "..."]] | None = None) -> Any:
    """Copy a plain model's module tree over the same tensors, with single parameters replaced by name.

    A tied parameter is replaced wherever it is used. EditError if a name or a shape is not the model's.
    """
    refuse_adapters(model)
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    params = dict(model.named_parameters())
    for name, tensor in (replacements or {}).items():
        if name not in params:
            raise EditError(
                f"this model has no parameter {name!r} (it has, for instance, {next(iter(params))!r}). "
                "Was the edit made on another model? A tied parameter goes by its first name in hm.params."
            )
        old = params[name]
        if tensor.shape != old.shape:
            raise EditError(
                f"parameter {name!r} has shape {tuple(old.shape)}, its replacement {tuple(tensor.shape)}. "
                "Was the edit made on a model of another size?"
            )
        new = tensor.detach().to(old.device, old.dtype)
        memo[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
    copied = copy.deepcopy(model, memo).eval()
    attend_in_float64(copied)
    return copied


def attend_in_float64(model: Any) -> None:
    """Have a plain model in float64 attend as its bridge does; other precisions stay as they are."""
    family = family_of(type(model).__name__)
    if next(model.parameters()).dtype == torch.float64 and family.softmax32:
        # The bridge computes this family's softmax in float32, sdpa does not: in float64 they differ.
        model.set_attn_implementation("eager")
        attention_masks.bound(model.get_submodule(family.block))


def cast(model: Any, *, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    """A copy of a plain model on another device or in another precision."""
    saved = set(model.state_dict())
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        moved = parameter.detach().to(device=device, dtype=dtype)
        memo[id(parameter)] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
    for name, buffer in model.named_buffers():
        keeps = name not in saved or not buffer.is_floating_point()
        memo[id(buffer)] = buffer.to(device=device, dtype=None if keeps else dtype)
    moved_model = copy.deepcopy(model, memo)
    if dtype is not None:
        moved_model.config.dtype = dtype
    return moved_model


def with_own_tensors(model: Any) -> Any:
    """A copy of a plain model, tensors included."""
    memo = {id(tensor): nn.Parameter(tensor.detach().clone()) for tensor in model.parameters()}
    return copy.deepcopy(model, memo)


def _copied_tokenizer(tokenizer: Any) -> Any:
    """A copy of a tokenizer, which TransformerLens accepts as it is and may change."""
    if tokenizer is None:
        return None
    copied = copy.deepcopy(tokenizer)
    # TransformerLens needs a name, and reads the tokenizer from disk again (without added tokens) unless
    # this flag is set.
    copied.init_kwargs.setdefault("name_or_path", copied.name_or_path or "local")
    copied.init_kwargs["add_bos_token"] = True
    return copied


def wrap(model: Any, tokenizer: Any, *, prepend_bos: bool) -> TransformerBridge:
    """Build a TransformerBridge in raw mode over the tensors of a plain model; the model stays as it is."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import GenerationConfig

    blank: Any = GenerationConfig
    # The bridge may be built at first use inside no_grad or inference_mode, and must be an ordinary one.
    # It starts with random weights, which must not change the user's random state.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        wrapped, name = twin(model), type(model).__name__
        wrapped.set_attn_implementation("eager")
        wrapped.config.architectures = [name]
        # The checkpoint's own (penalties, beams, ...) would change what is generated.
        wrapped.generation_config = blank()
        bridge: TransformerBridge = build_bridge_from_module(
            wrapped, name, hf_config=wrapped.config, tokenizer=_copied_tokenizer(tokenizer)
        )
        bridge.eval()
        if next(wrapped.parameters()).dtype == torch.float64 and family_of(name).softmax32:
            attention_masks.bound(bridge.blocks)
    key_value_caches.connect(bridge)
    bridge.cfg.default_prepend_bos = prepend_bos
    return bridge


@torch.no_grad()
def sync(bridge: TransformerBridge, arch: Arch, params: Mapping[str, Tensor]) -> None:
    """Refresh Q, K and V of a bridge that holds copies of them (GPT-NeoX) after a change of weights."""
    for parameter, part in arch.joined():
        layer, name, field = parameter.split(".")
        component = getattr(bridge.blocks[int(layer)].attn, name).original_component
        held, source = getattr(component, field), params[part.name]
        # Where the bridge shares memory with the model, it has changed already.
        if held.untyped_storage().data_ptr() != source.untyped_storage().data_ptr():
            value = part.of(source)
            # The bridge holds (outputs, inputs); GPT-2, whose outputs lie along axis 1, the transpose.
            held.copy_(value.T if part.axis == 1 else value)
