"""Facts and collections of facts, as values."""
