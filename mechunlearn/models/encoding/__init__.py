"""Facts and text as tensors."""
