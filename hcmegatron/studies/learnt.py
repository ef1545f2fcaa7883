"""What a run learns from its configuration, so that another one would have another result."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hcmegatron.config.schema import Config
from hcmegatron.config.types import flatten
from hcmegatron.training.resume_rules import RULE_OF, Rule

_NOTHING = (Rule.HARMLESS, Rule.ROUNDING)


def learnt(config: Config) -> dict[str, Any]:
    """The settings that change what is learnt, and not only how it is computed or told."""
    return {key: value for key, value in flatten(config).items() if RULE_OF[key] not in _NOTHING}


def digest(config: Config) -> str:
    """A checksum of them."""
    return hashlib.sha256(json.dumps(learnt(config), sort_keys=True).encode()).hexdigest()[:16]


def difference(there: Config, here: Config) -> str:
    """The first setting that is another, in words; "" where none is."""
    theirs, ours = learnt(there), learnt(here)
    for key, value in ours.items():
        if theirs[key] != value:
            return f"{key} = {json.dumps(theirs[key])} there, {json.dumps(value)} in the study"
    return ""
