"""The suite behaves the same however it is started, and whichever part of it: tests do not depend on those before."""

import logging
import os
import random
import signal
import sys

import numpy as np
import pytest
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

torch.set_num_threads(1)  # make test has two processes on two cores

_files = {}  # those that this process has run, in order


def pytest_runtest_setup(item):
    """Random numbers do not depend on who drew some before."""
    _files[item.location[0]] = None
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """make test shares files out as processes come free: who fails says which were before."""
    report = yield
    if report.failed:
        report.sections.append(("files before, in this process", " ".join(_files)))
    return report


@pytest.fixture(scope="module", autouse=True)
def leaves_the_process_as_it_was():
    """A file that changes what the whole process has fails itself, not whichever comes after it."""
    before = _of_the_process()
    yield
    after = _of_the_process()
    imported = {name for name in after.keys() - before.keys() if name.startswith("module ")}
    names = (before | after).keys() - imported
    changed = {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}
    assert not changed, f"changed: {changed}"


def _of_the_process():
    coming = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR")  # pytest's own; torch's, at an import
    found = {f"environment {name}": value for name, value in os.environ.items() if name not in coming}
    found |= {f"signal {number}": signal.getsignal(number) for number in range(1, signal.SIGSYS)}
    rooms = (
        "hcmegatron",
        "schedules",
        "tools",
        "megatron",
    )  # elsewhere modules replace themselves when first used
    found |= {f"module {n}": m for n, m in sys.modules.items() if n.partition(".")[0] in rooms}
    handlers = [h for h in logging.getLogger().handlers if not type(h).__module__.startswith("_pytest")]
    return found | {
        "working directory": os.getcwd(),
        "sys.path": list(sys.path),
        "logging": (logging.getLogger().level, handlers),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
