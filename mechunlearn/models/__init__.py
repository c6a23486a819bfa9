"""The model: one set of tensors, a bridge to look through and a plain Hugging Face model to cut."""
