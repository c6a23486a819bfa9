"""The main job on the embedded world: look, cut at each place found, doubt, and say what was found."""
