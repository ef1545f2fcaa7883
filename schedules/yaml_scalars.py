"""Scalars of YAML 1.2's core schema for PyYAML, which follows 1.1: 1e-3 is a number, yes and off are words."""

from __future__ import annotations

import re

import yaml

TAG = "tag:yaml.org,2002:"
# tag, pattern of the whole text, its possible first characters
SCALARS = (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
)


def core_schema(cls: type[yaml.SafeLoader] | type[yaml.SafeDumper]) -> type:
    """The loader or dumper with these scalars in place of its own."""
    cls.yaml_implicit_resolvers = {}
    for name, pattern, first in SCALARS:
        cls.add_implicit_resolver(TAG + name, re.compile(rf"(?:{pattern})\Z"), first)
    return cls
