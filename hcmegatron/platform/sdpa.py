"""Which of torch's attention kernels may be taken: they differ between versions."""

from __future__ import annotations

import torch
import torch.nn.attention


def disable_persistent_sdpa() -> None:
    """From now on this process's attention takes no persistent kernel, one that starts a block per SM and holds them
    all until it is through: all-to-alls and merges of another lane would be placed after it instead of beside it.

    torch's own flash and memory-efficient kernels start a block per tile. cuDNN's can be persistent, and so can
    FlashAttention 3 and 4, which torch takes only where a program has activated them. What attention itself loses by it
    has not been measured.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if hasattr(torch.nn.attention, "restore_flash_attention_impl"):  # where torch can be given another one
        torch.nn.attention.restore_flash_attention_impl(_raise_warn=False)
