"""What only a CPU does, switched off where numbers, shapes or memory are to be a GPU's."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest import mock

from hcmegatron.model import expert_padding


def no_padding() -> AbstractContextManager:
    """No rows of zeros between experts' tokens."""
    return mock.patch.object(expert_padding, "wanted", lambda tokens: False)
