"""Parts of scripts that several launchers have."""

from __future__ import annotations

import re

from launch.job import Job, LaunchError
from launch.quoting import quote_all

# Where ranks start: their PYTHONPATH may be of the cluster file, of a module, or of the container.
_CODE_FIRST = 'export PYTHONPATH="$0${PYTHONPATH:+:$PYTHONPATH}"; exec "$@"'


def with_environment(job: Job, command: tuple[str, ...]) -> list[str]:
    """The command with the job's variables, which env gives it in a container too, and its own code.

    Raises:
        LaunchError: a name that no variable can have.
    """
    for name in job.environment:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise LaunchError(f"environment: {name!r} is no name of a variable; use letters, digits and _")
    values = [f"{name}={value}" for name, value in job.environment.items()]
    environment = ["env", *values] if values else []
    own_code = [] if job.code is None else ["sh", "-c", _CODE_FIRST, str(job.code)]
    return [*environment, *own_code, *command]


def module_lines(job: Job) -> str:
    """Lines of shell that load the job's modules; "" where it has none."""
    if not job.modules:
        return ""
    load = "# shellcheck disable=SC1091\ntype module >/dev/null 2>&1 || source /etc/profile\n"
    return load + f"module load {quote_all(job.modules)}"
