"""Parts of scripts that several launchers have."""

from __future__ import annotations

import re

from launch.job import Job, LaunchError
from launch.quoting import quote_all


def with_environment(job: Job, command: tuple[str, ...]) -> list[str]:
    """The command with the job's variables, which env gives it in a container too.

    Raises:
        LaunchError: a name that no variable can have.
    """
    for name in job.environment:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise LaunchError(f"environment: {name!r} is no name of a variable; use letters, digits and _")
    values = [f"{name}={value}" for name, value in job.environment.items()]
    return ["env", *values, *command] if values else list(command)


def module_lines(job: Job) -> str:
    """Lines of shell that load the job's modules; "" where it has none."""
    if not job.modules:
        return ""
    load = "# shellcheck disable=SC1091\ntype module >/dev/null 2>&1 || source /etc/profile\n"
    return load + f"module load {quote_all(job.modules)}"
