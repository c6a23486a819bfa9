"""Key-value caches of a bridge: passed on under the name that its attention reads, and checked before use.

Transformers 5.24 renamed an argument of blocks and attention, ``past_key_values``, to ``cache``; attention of
TransformerLens reads the old name. A cache that nobody reads leaves a token alone with itself, and the text
that is generated is wrong without an error. Therefore:

1. ``connect`` reads from the signature of every attention how its block passes the cache, and renames the
   argument where the names differ.
2. ``connect`` also continues a few tokens with a cache and without. Where the logits differ, ``generate``
   runs without one; ``reason_against`` says why.
"""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch

from mechunlearn.models.agreement import close

_READ = "past_key_values"
_RENAMED = "cache"
_LENGTH = 6


def connect(bridge: Any) -> None:
    """Have every attention of a bridge read the cache that its block passes, and check that it is used."""
    for block in getattr(bridge, "blocks", ()):
        attention: Any = getattr(block, "attn", None)
        plain = getattr(attention, "original_component", None)
        if plain is not None and _RENAMED in inspect.signature(plain.forward).parameters:
            attention.register_forward_pre_hook(_under_the_name_that_is_read, with_kwargs=True)
    # Now, while the bridge has no hooks of the user, which would fire.
    _CHECKED[bridge] = _check(bridge.original_model)


def reason_against(bridge: Any) -> str:
    """Say why a bridge cannot keep keys and values between tokens; empty if it can."""
    return _CHECKED[bridge]


def _under_the_name_that_is_read(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if _RENAMED in kwargs and kwargs.get(_READ) is None:
        others = {name: value for name, value in kwargs.items() if name != _RENAMED}
        return args, {**others, _READ: kwargs[_RENAMED]}
    return args, kwargs


def _check(model: Any) -> str:
    """Run the model three times on six random tokens, and compare the logits with a cache and without."""
    from transformers import DynamicCache

    embedding = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(embedding.shape[0], (1, _LENGTH), generator=generator).to(embedding.device)
    name = _RENAMED if _RENAMED in inspect.signature(model.forward).parameters else _READ
    cached = {name: DynamicCache(config=model.config), "use_cache": True}
    try:
        with torch.no_grad():
            complete = model(tokens, use_cache=False).logits
            model(tokens[:, :-2], **cached)
            continued = model(tokens[:, -2:], **cached).logits
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        return f"a run with cached keys and values failed ({type(error).__name__}: {error})"
    same = close(continued, complete[:, -2:])
    return "" if same else "cached keys and values lead to other logits than the complete text"


_CHECKED: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
