"""The one exception a user's configuration can cause."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting that cannot be used. One line, whatever the user typed: place, key, value, remedy."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


def one_line(text: str) -> str:
    """The text with what cannot be printed, such as a line break or a name's bytes that are not UTF-8, written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
