"""Where Megatron's chunks meet a pipeline schedule: losses, message widths, gradients."""

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter before Megatron is imported)
