"""What a site asks of every job: a YAML file with a Job's settings, and options that override them.

A cluster file is --cluster FILE, $HCMEGATRON_CLUSTER, or ~/.config/hcmegatron/cluster.yaml where that is there. None of
it belongs to a run's configuration, which is the same on a laptop.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.types import Loader, convert_value, describe_field, override, shown_value
from launch.job import Job, LaunchError

DEFAULT = Path("~/.config/hcmegatron/cluster.yaml")
VARIABLE = "HCMEGATRON_CLUSTER"
_LEAST = {
    "nodes": 1,
    "ranks_per_node": 1,
    "cpus_per_rank": 1,
    "memory_per_rank_gb": 1,
    "time_limit": 1,
    "signal_seconds": 1,
}
_LARGEST = 1_000_000
_SEPARATOR = re.compile(r",(?![^\[]*\])")  # of machines: not those in gpu[1,3]
_Hint = Any


def settings() -> dict[str, tuple[_Hint, str]]:
    """Settings by name: their type, a list where Job has a tuple, and what they are in words."""
    hints = typing.get_type_hints(Job)
    return {
        field.name: (
            list[str] if hints[field.name] == tuple[str, ...] else hints[field.name],
            field.metadata["words"],
        )
        for field in dataclasses.fields(Job)
        if "words" in field.metadata
    }


def option(name: str) -> str:
    """The option of a setting: ranks_per_node is --ranks-per-node."""
    return "--" + name.replace("_", "-")


def describe(name: str) -> str:
    """A setting in words, for the help."""
    hint, words = settings()[name]
    kind = "NAME=value" if name == "environment" else describe_field(hint)
    return f"{words} ({kind})"


def find(given: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The cluster file that was given, or that there is; None: none."""
    if given is not None:
        return given
    if environ.get(VARIABLE):
        return Path(environ[VARIABLE])
    path = DEFAULT.expanduser()
    return path if path.exists() else None


def read(path: Path) -> dict[str, Any]:
    """The settings of a cluster file.

    Raises:
        LaunchError: it cannot be read, or has what is no setting or no value of one; file and line, key, remedy.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise LaunchError(f"{path}: cannot be read as a cluster file: {why}") from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise LaunchError(f"{path}: is not a list of settings; write lines like partition: gpu")
    found: dict[str, Any] = {}
    for key, node in root.value:
        place = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise LaunchError(
                f"{place}: {shown_value(key)} is no name of a setting; write lines like partition: gpu"
            )
        if key.value in found:
            raise LaunchError(f"{place}: {key.value} is given twice; keep one")
        found[key.value] = _value(key.value, node, place)
    return found


def from_options(given: Mapping[str, list[str]]) -> dict[str, Any]:
    """The settings that options gave: their texts by name, of which --environment may have several."""
    found: dict[str, Any] = {}
    for name, texts in given.items():
        if name == "environment":
            found[name] = dict(_variable(text) for text in texts)
        elif len(texts) > 1:
            raise LaunchError(
                f"{option(name)} {texts[1]}: is given twice, as {texts[0]} before; give it once"
            )
        else:
            text, hint = texts[0], settings()[name][0]
            if hint == list[str] and not text.startswith("["):
                found[name] = tuple(_SEPARATOR.split(text)) if name == "exclude" else (text,)
            else:
                found[name] = _value(name, override(text, hint), option(name))
    return found


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise LaunchError(f"--environment {text}: has no value; write --environment NAME=value")
    return name, value


def _value(name: str, node: yaml.Node, place: str) -> Any:
    """A setting's value; LaunchError with its place where it is none."""
    if name not in settings():
        near = difflib.get_close_matches(str(name), settings(), 1)
        hint = f"did you mean {near[0]}?" if near else f"they are {', '.join(settings())}"
        raise LaunchError(f"{place}: {name} is not a setting of a cluster; {hint}")
    hint = settings()[name][0]
    try:
        if name == "environment":
            return _environment(node)
        value = convert_value(node, hint)
        least = _LEAST.get(name, 0)
        if type(value) is int and not least <= value <= _LARGEST:
            raise ConfigError(f"is not between {least} and {_LARGEST}")
    except ConfigError as error:
        raise LaunchError(f"{place}: {name} = {shown_value(node)} {error}") from None
    return tuple(value) if isinstance(value, list) else value


def _environment(node: yaml.Node) -> dict[str, str]:
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("is not a list of variables; write lines like NCCL_DEBUG: INFO under it")
    found = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"has {shown_value(key)}, which is no name of a variable")
        if key.value in found:
            raise ConfigError(f"has {key.value} twice; keep one")
        if not isinstance(value, yaml.ScalarNode):
            raise ConfigError(f"has {shown_value(value)} for {key.value}, which is no text")
        found[key.value] = value.value
    return found
