"""Path patching: from senders to receivers and through nothing else."""
