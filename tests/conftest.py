"""The suite behaves the same however it is started, and whichever part of it."""

import os
import signal

import torch

# A shell starts what it puts in the background with SIGINT ignored, nohup with SIGHUP; programs that tests start would
# inherit that, and rightly stay deaf to these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A make that starts the suite tells every make below it to print directories.
for variable in ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"):
    os.environ.pop(variable, None)

# Where there is no GPU, Triton's kernels run in its interpreter; that is decided when they are first imported, which
# any test may do.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
