"""Ends the build of an image that has got what it must not have: python3 check.py gpu|cpu."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

from hcmegatron.config.packaged import packaged
from hcmegatron.platform.optional import nvidia_apex
from hcmegatron.platform.versions import megatron_core

TORCH = (2, 11)


def wrong(target: str) -> list[str]:
    """What is wrong with this image, in words."""
    torch, apex = importlib.metadata.version("torch"), nvidia_apex()
    found = []
    if tuple(int(part) for part in torch.split(".")[:2]) < TORCH:
        found.append(f"torch {torch} is older than {'.'.join(map(str, TORCH))}; use a newer base image")
    if apex.alarming:
        found.append(f"apex: {apex.words}")
    if not packaged():
        found.append(
            "the packaged configurations are missing; copy configs/, to which hcmegatron/configs leads"
        )
    if target == "gpu":
        if not apex.usable and not apex.alarming:
            found.append(f"NVIDIA's apex is not in the base image: {apex.words}")
        if importlib.util.find_spec("transformer_engine") is None:
            found.append("Transformer Engine is not in the base image")
    return found


def main() -> int:
    """Say what is there, and what is wrong."""
    print(
        f"torch {importlib.metadata.version('torch')}, megatron-core {megatron_core()}; apex: {nvidia_apex().words}"
    )
    mistakes = wrong(sys.argv[1])
    for mistake in mistakes:
        print(f"check.py: {mistake}", file=sys.stderr)
    return len(mistakes)


if __name__ == "__main__":
    sys.exit(main())
