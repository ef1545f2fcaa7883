"""The suite behaves the same however it is started."""

import os
import signal

import pytest

pytest.register_assert_rewrite("tests.runtime.equality")  # a failed comparison there says what was compared

# A shell starts what it puts in the background with SIGINT ignored, nohup with SIGHUP; programs that tests start would
# inherit that, and rightly stay deaf to these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A make that starts the suite tells every make below it to print directories.
for variable in ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"):
    os.environ.pop(variable, None)
