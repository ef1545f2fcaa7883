"""Words that reach a program unchanged by way of a shell, or are refused."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from launch.job import LaunchError

_PLAIN = re.compile(r"[^\x00-\x20\x7f\"'\\#]+")  # what a directive carries as it is


def quote(word: str) -> str:
    """`word` as one word of a POSIX shell.

    Raises:
        LaunchError: it has a NUL or half a surrogate pair, which no program can be given.
    """
    if "\0" in word:
        raise LaunchError(f"{word!r} has a NUL character, which no program can be given; leave it out")
    try:
        word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise LaunchError(f"{word!r} is no text that a file can hold; leave it out") from None
    return shlex.quote(word)


def quote_all(words: Iterable[str]) -> str:
    """A command line of these words."""
    return " ".join(quote(word) for word in words)


def directive(option: str, value: str) -> str:
    """`--option=value` of a line such as #SBATCH, which is read by no shell.

    Raises:
        LaunchError: the value has a space, a quote, a line break or another character that such a line cannot carry.
    """
    if not _PLAIN.fullmatch(value):
        raise LaunchError(
            f"{option} = {value!r} cannot stand in a job's header; use a name without spaces, quotes and #"
        )
    return f"--{option}={value}"
