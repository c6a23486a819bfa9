"""An exact patching engine that never computes what cannot have changed."""
