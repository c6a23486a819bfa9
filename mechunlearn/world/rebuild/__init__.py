"""Train and check the embedded checkpoints anew."""
