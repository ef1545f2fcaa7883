"""Words for errors."""

from __future__ import annotations


def nearest_multiples(value: int, of: int) -> str:
    """The multiples of `of` around `value`, in words."""
    below, above = value // of * of, -(-value // of) * of
    return f"{below} or {above}" if below else f"{above}"
