"""The training loop: losses, checkpoints, what a trainer shares with the others."""
