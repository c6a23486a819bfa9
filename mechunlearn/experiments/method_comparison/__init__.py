"""Every method beside every other: the same facts, the same places, the same budget of steps."""
