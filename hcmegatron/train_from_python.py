"""Training from Python: `hcmegatron.train("quickstart", training={"steps": 100})`.

Under a launcher (torchrun, srun, mpirun) the calling process is one rank and trains itself. Without one, a process is
started that does what `hcmegatron train` does: it starts the ranks that the layout asks for, on this machine. The
caller stays as it is: a rank sets up process groups, signal handlers and Megatron's global state, and a process that
has used torch's threads must not be forked. The process ends with the caller.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hcmegatron.config import Config, ConfigError, check_config, dump_config, read_config
from hcmegatron.config.load import scalar
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.exit_status import STOPPED, USER_ERROR
from hcmegatron.platform.optional import require_extra


def train(config: str | os.PathLike[str] | Config, *, restarts: int | None = None, **overrides: Any) -> Path:
    """Train, wait for the end, and return the run directory.

    Output goes where the process's own goes (in a notebook: to the terminal that started it). Ctrl-C has the run save
    and end, and is raised here then.

    Args:
        config: a YAML file, the name of a packaged configuration, or a Config.
        restarts: as `hcmegatron train --restarts`.
        **overrides: sections as mappings, `training={"steps": 100}`, and settings that stand alone, `kernels="torch"`.

    Raises:
        ConfigError: the configuration cannot be used. What only its data or the machine show is said in the output.
        Ended: training did not get to its end; `status` is the command's exit status.
    """
    require_extra("hcmegatron.train")
    from hcmegatron.platform.ranks import discover_ranks

    launched = discover_ranks(os.environ) is not None
    with tempfile.TemporaryDirectory(prefix="hcmegatron-") as folder:
        file = _file(config, Path(folder))
        words = _words(overrides)
        resolved, sources = read_config(file, words)
        check_config(resolved, sources)
        directory = _directory(resolved, file.stem, launched)
        words = [word for word in words if not word.startswith("--run.dir=")] + [
            f"--run.dir={scalar(str(directory))}"
        ]
        words += [f"--restarts={restarts}"] if restarts is not None else []
        status = (_here if launched else _in_a_process)(["train", str(file), *words])
    if status == USER_ERROR:
        raise ConfigError(f"{file}: training was refused; the line above says why")
    if status:
        how = "was stopped by a signal" if status == STOPPED else f"ended with exit status {status}"
        raise Ended(f"the run in {directory} {how}; the lines above say more", status)
    return directory


def _file(config: str | os.PathLike[str] | Config, folder: Path) -> Path:
    """The YAML file that it is, or that it becomes in a folder."""
    if not isinstance(config, Config):
        return Path(config)
    file = folder / "run.yaml"
    file.write_text(dump_config(config))
    return file


def _words(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as the command line has them."""
    words = []
    for section, value in overrides.items():
        settings = value if isinstance(value, Mapping) else {"": value}
        for key, each in settings.items():
            name = f"{section}{'.' if key else ''}{key}"
            words.append(f"--{name}={scalar(_plain(name, each))}")
    return words


def _plain(name: str, value: Any) -> Any:
    """A setting's value as YAML knows it: NumPy's and torch's numbers as Python's, paths as words.

    Raises:
        ConfigError: YAML has no such value.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_plain(name, each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(name, each) for key, each in value.items()}
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # of a subclass, such as an enumeration's, YAML would write its class
    if value is None:
        return None
    raise ConfigError(
        f"{name}: {type(value).__name__} is no value of a setting; use a number, a text, a list or None"
    )


def _directory(config: Config, name: str, launched: bool) -> Path:
    if launched and config.run.dir is None:
        raise ConfigError("run.dir = null: ranks of a launcher have to agree on it; give run={'dir': ...}")
    from hcmegatron.training.run_directory import choose_directory

    return choose_directory(config, name)


def _here(words: Sequence[str]) -> int:
    from hcmegatron import cli

    return cli.main(words)


def _in_a_process(words: Sequence[str]) -> int:
    """The exit status of the command, in a process that finds modules where this one does."""
    path = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, *words],
        env=os.environ | {"PYTHONPATH": path},
        process_group=0,  # the terminal's Ctrl-C comes by way of this process alone
    )
    interrupted = False
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
            process.send_signal(signal.SIGINT)
    if interrupted:
        raise KeyboardInterrupt
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    from hcmegatron.__main__ import main
    from hcmegatron.platform.process_signals import end_with_parent

    end_with_parent(signal.SIGTERM)
    sys.exit(main())
