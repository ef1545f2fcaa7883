"""A small study as text, for tests that change some of it."""

from __future__ import annotations

from pathlib import Path

STUDY = """\
base: stability
settings:
  model.layers: 2
  optimizer.schedule: wsd
axes:
  kind: [residual, mhc]
  size: {dial: [32, 64], model.hidden_size: {of: dial}, model.heads: {of: dial, per: 16}}
  tokens: [51200]
  seed: [1, 2]
report:
  baseline: residual
"""


def written(folder: Path, *changes: tuple[str, str], name: str = "s.yaml") -> Path:
    """The study in a file, with texts replaced, each of which is there once."""
    text = STUDY
    for before, after in changes:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    path = folder / name
    path.write_text(text)
    return path
