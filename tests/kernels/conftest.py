"""Where there is no GPU, Triton's kernels run in its interpreter; that is decided when they are first
imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
