"""The model: one set of tensors, a bridge to look through and a plain Hugging Face model to cut."""

from mechunlearn.model.hooked import HookedModel as HookedModel

__all__ = ["HookedModel"]
