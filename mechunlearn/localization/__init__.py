"""Look: which sites of a model look a fact up, and which carry it out."""
