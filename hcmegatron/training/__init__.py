"""The loop, and what it steps: wrapped model, optimizer, checkpoints, metrics."""
