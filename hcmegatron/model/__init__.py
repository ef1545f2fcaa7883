"""Megatron-Core layers as ordered nodes with a connection around every sub-layer, and the GPT built from them."""

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter before Megatron is imported)
