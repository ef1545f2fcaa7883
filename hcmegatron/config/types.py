"""Turning what is written in YAML or on the command line into the value a field's type asks for.

Scalars follow YAML 1.2's core schema rather than PyYAML's 1.1: 1e-3 is a number, yes and off are words.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import yaml

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config
from schedules.yaml_scalars import SCALARS, TAG, core_schema

_LARGEST = 2**31 - 1  # what Megatron's and NumPy's 32-bit counters hold


@core_schema
class Loader(yaml.SafeLoader):
    """Composes nodes only; no tag ever constructs an object."""


@core_schema
class Dumper(yaml.SafeDumper):
    """Writes scalars that Loader reads back as they were."""


@cache
def fields(cls: type) -> dict[str, Any]:
    """Field name -> type of a dataclass of the schema."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


@cache
def leaves() -> dict[str, Any]:
    """Dotted key -> type of every setting, in the schema's order."""
    found: dict[str, Any] = {}
    for name, hint in fields(Config).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found.update({f"{name}.{leaf}": leaf_hint for leaf, leaf_hint in fields(hint).items()})
        else:
            found[name] = hint
    return found


def defaults() -> dict[str, Any]:
    """Dotted key -> default of every setting."""
    return flatten(Config())


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> value of every setting."""
    found: dict[str, Any] = {}
    for key in leaves():
        section, _, leaf = key.rpartition(".")
        found[key] = getattr(getattr(config, section) if section else config, leaf)
    return found


def unflatten(settings: Mapping[str, Any], where: str) -> Config:
    """The configuration of `flatten`'s settings; those that are missing have their defaults.

    Args:
        where: who kept them, in words.

    Raises:
        ConfigError: there is one that this version does not know.
    """
    config = Config()
    if unknown := sorted(settings.keys() - leaves().keys()):
        raise ConfigError(f"{where}: {unknown[0]} is no setting of this version; use the one that wrote it")
    for key, value in settings.items():
        section, _, leaf = key.rpartition(".")
        setattr(getattr(config, section) if section else config, leaf, value)
    return config


def describe_field(hint: Any) -> str:
    """A field's type in words."""
    options, optional = _options(hint)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if typing.get_origin(options) is Literal:
        text = "one of " + ", ".join(typing.get_args(options))
    elif typing.get_origin(options) is list:
        text = {
            str: "a list of texts, [a, b]",
            float: "a list of numbers, [0.8, 0.9]",
            int: "a list of whole numbers, [10, 20]",
        }[typing.get_args(options)[0]]
    else:
        text = words[options]
    return text + (" or null" if optional else "")


def convert_value(node: yaml.Node, hint: Any) -> Any:
    """The value of a YAML node as the type `hint`; ConfigError (without place or key) where it is not one."""
    kind, optional = _options(hint)
    if typing.get_origin(kind) is list:
        if isinstance(node, yaml.SequenceNode):
            try:
                return [convert_value(item, typing.get_args(kind)[0]) for item in node.value]
            except ConfigError as error:
                raise ConfigError(f"has an entry that {error}") from None
        raise ConfigError(f"is not {describe_field(hint)}")
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"is not {describe_field(hint)}")
    tag, text = node.tag.removeprefix(TAG), node.value
    if tag != "str" and not _looks(text, tag):
        raise ConfigError(f"is not {describe_field(hint)}")
    if tag == "null" and optional:
        return None
    if kind is str and tag != "null":
        if not text.strip():
            raise ConfigError(f"is empty; give {describe_field(hint)}")
        if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", text):
            raise ConfigError("holds a line break or another control character; write it in one line")
        return text
    if typing.get_origin(kind) is Literal:
        for option in typing.get_args(kind):
            if option in (text, text.replace("-", "_")):  # zb-h1 is zb_h1
                return option
        if tag == "bool" and {"auto", "never"}.issubset(typing.get_args(kind)):  # a switch that has grown
            return "auto" if text.lower() == "true" else "never"
    if kind is bool and tag == "bool":
        return text.lower() == "true"
    if kind is int and tag == "int":
        return _bounded(text)
    if kind is float and tag in ("int", "float"):
        return _finite(text)
    raise ConfigError(f"is not {describe_field(hint)}")


def override(value: str, hint: Any) -> yaml.Node:
    """The node of a value on the command line. Text stands as it was typed: ` #` begins no comment there, and `*`
    and `: ` are nothing else; quotes and brackets around the whole are YAML's."""
    try:
        node = yaml.compose(value, Loader)
    except yaml.YAMLError:
        node = None
    kind, optional = _options(hint)
    if kind == list[str] and node is None and (match := re.fullmatch(r"\s*\[([^][{}\"']*)\]\s*", value)):
        items = [yaml.ScalarNode(TAG + "str", item.strip()) for item in match[1].split(",")]
        return yaml.SequenceNode(TAG + "seq", items)
    quoted = isinstance(node, yaml.ScalarNode) and node.style and value.strip()[-1] == node.style
    null = optional and isinstance(node, yaml.ScalarNode) and _looks(value.strip(), "null")
    if not isinstance(node, yaml.SequenceNode | yaml.ScalarNode) or (kind is str and not quoted and not null):
        return yaml.ScalarNode(TAG + "str", value)
    return node


def shown_value(node: yaml.Node, nested: bool = False) -> str:
    """What the user wrote, short enough for an error line."""
    if isinstance(node, yaml.ScalarNode):
        quote = node.style if node.style in ("'", '"') else ""
        text = f"{quote}{node.value}{quote}"
    else:
        first = [] if nested else node.value[:4]
        more = ["..."] if nested or len(node.value) > 4 else []
        if isinstance(node, yaml.SequenceNode):
            text = f"[{', '.join([shown_value(item, True) for item in first] + more)}]"
        else:
            text = f"{{{', '.join([f'{shown_value(key, True)}: ...' for key, _ in first] + more)}}}"
    return text if len(text) <= 60 else text[:57] + "..."


def _looks(text: str, tag: str) -> bool:
    """Whether the text is a scalar of that tag: an explicit tag (`!!int many`) only claims to be."""
    return any(name == tag and re.fullmatch(pattern, text) for name, pattern, _ in SCALARS)


def _options(hint: Any) -> tuple[Any, bool]:
    """A type without its `| None`, and whether it had one."""
    if isinstance(hint, types.UnionType):
        (kind,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
        return kind, True
    return hint, False


def _bounded(text: str) -> int:
    value = float(text)  # of any length, which int refuses; exact up to 2^53
    if abs(value) > _LARGEST:
        raise ConfigError(f"is beyond {_LARGEST}")
    return int(value)


def _finite(text: str) -> float:
    value = float(re.sub(r"\.(?=[in])", "", text.lower()))  # .inf, .NaN
    if not math.isfinite(value):
        raise ConfigError("is not a finite number")
    return value
