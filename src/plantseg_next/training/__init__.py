"""Training: losses, steps, checkpoints and callbacks."""
