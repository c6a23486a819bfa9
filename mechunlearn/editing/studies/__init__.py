"""Ask of edits: how small, in which order, of a whole class, of how many facts at once."""
