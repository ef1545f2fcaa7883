"""Templates: readable files in templates/, with {{names}} that are filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_FOLDER = Path(__file__).parent / "templates"
_NAME = re.compile(r"\{\{(\w+)\}\}")


def fill(name: str, values: Mapping[str, str]) -> str:
    """The text of templates/`name` with its {{names}} replaced. A line that is one empty name alone is left out.

    Raises:
        KeyError: a name without a value, or a value without a name: a mistake in this program.
    """
    text = (_FOLDER / name).read_text(encoding="utf-8")
    if set(_NAME.findall(text)) != values.keys():
        raise KeyError(f"{name}: {set(_NAME.findall(text)) ^ values.keys()}")
    lines = []
    for line in text.splitlines():
        alone = _NAME.fullmatch(line.strip())
        if alone and not values[alone[1]]:
            continue
        lines.append(_NAME.sub(lambda match: values[match[1]], line))
    return "\n".join(lines) + "\n"
