"""Imported before Triton: its kernels run in its interpreter where there is no GPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"
