"""Activation patching, and what other verbs that patch share with it: what is asked, what corrupts, where."""
