"""The loop, and what it steps: wrapped model, optimizer, checkpoints, metrics."""

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter before Megatron is imported)
