"""Config files: defaults <- YAML, with `extends:` <- dotted overrides. Nothing unknown, nothing twice.

Every error is one line: the file and line (or the override), the key, the value, and what to do.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.packaged import locate, packaged_file
from hcmegatron.config.ranges import check_value
from hcmegatron.config.schema import Config
from hcmegatron.config.types import (
    Dumper,
    Loader,
    convert_value,
    defaults,
    fields,
    flatten,
    leaves,
    override,
    shown_value,
)

# Asked for by name, but not there, or not possible under Megatron-Core: said as such, not as an unknown key.
ABSENT = (
    (
        r"context|context_parallel.*|cp|cp_size",
        "context parallelism is not supported; split with parallel.tensor and parallel.sequence instead",
    ),
    (r".*fp8.*|.*fp4.*|.*float8.*", "FP8 and FP4 training are not supported; use training.dtype=bf16"),
    (r"mtp|mtp_.*|multi_token.*", "multi-token prediction (MTP) is not supported; leave the setting out"),
    (r".*cuda_?graphs?.*", "CUDA graphs are not supported; leave the setting out"),
    (
        r"parallel\.data.*|(parallel\.)?(dp|dp_.*|data_parallel.*)",
        "data parallel is what is left of the world size: ranks / (parallel.pipeline x parallel.tensor); "
        "start more ranks",
    ),
)
# Files and directories: ~ is the home directory.
PLACES = (
    "run.dir",
    "data.paths",
    "data.validation",
    "data.test",
    "data.tokenizer",
    "checkpoint.load",
    "checkpoint.init_from",
    "parallel.costs",
)
ABSENT_VALUES = {
    "training.dtype": (
        (r".*fp8.*|.*float8.*|e4m3|e5m2|.*fp4.*", ABSENT[1][1]),
        (r"fp16|float16|half", "fp16 needs loss scaling, which is not supported; use bf16"),
        (r"bfloat16", "it is written bf16"),
        (r"float32|float", "it is written fp32"),
        (r"float64|double", "it is written fp64"),
    ),
}


class WrittenValue(NamedTuple):
    """One value as written, and where."""

    node: yaml.Node
    source: str  # "file:line", or the override as typed


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The Config of a YAML file and overrides like `--training.steps=10`, checked value by value.

    Checks between settings are `checks.check_config`. Raises ConfigError.
    """
    return read_config(path, overrides)[0]


def read_config(path: str | Path | None, overrides: list[str] | None = None) -> tuple[Config, dict[str, str]]:
    """As `load_config`, with where each given setting came from: dotted key -> "file:line" or the override.

    Without a path, the overrides change the defaults.
    """
    typed: dict[
        str, WrittenValue
    ] = {}  # before the file, which may be the value of a mistyped one: --training.stps 10
    for text in overrides or []:
        key, setting = _read_override(text)
        if key in typed:
            raise ConfigError(f"{text}: {key} is given twice, as {typed[key].source} before; give it once")
        typed[key] = setting
    settings = (_read_file(locate(Path(path)), ()) if path is not None else {}) | typed
    config = Config()
    for key, setting in settings.items():
        section, _, leaf = key.rpartition(".")
        try:
            value = convert_value(setting.node, leaves()[key])
            check_value(key, value)
            if key in PLACES and value is not None:
                value = at_home(value) if isinstance(value, str) else [at_home(path) for path in value]
        except ConfigError as error:
            raise ConfigError(
                f"{setting.source}: {key} = {shown_value(setting.node)} {_better(key, setting, error)}"
            ) from None
        setattr(getattr(config, section) if section else config, leaf, value)
    return config, {key: setting.source for key, setting in settings.items()}


def at_home(path: str) -> str:
    """A path with ~ and ~user at its beginning as the home directory; ConfigError where there is none."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError(f"begins with {path.partition('/')[0]}, which is nobody's home; write ./{path}")
    return expanded


def dump_config(config: Config) -> str:
    """YAML that loads as `config`. Defaults that have no effect here are comments with the reason."""
    idle, initial = ineffective(config), defaults()
    lines: list[str] = []
    for section, settings in groupby(flatten(config).items(), lambda setting: setting[0].rpartition(".")[0]):
        entries = []
        for key, value in settings:
            entry = ("  " if section else "") + f"{key.rpartition('.')[2]}: {scalar(value)}"
            if key in idle and value == initial[key]:
                entry = f"# {entry}  (no effect: {idle[key]})"
            entries.append(entry)
        if section:  # one whose settings all became comments would be read as null
            empty = all(entry.startswith("#") for entry in entries)
            lines.append(f"# {section}:" if empty else f"{section}:")
        lines += entries
    return "\n".join(lines) + "\n"


def _read_file(path: Path, parents: tuple[Path, ...]) -> dict[str, WrittenValue]:
    """Dotted key -> setting of a file, after those of the files it extends."""
    if path.resolve() in parents:
        chain = " -> ".join(str(parent) for parent in (*parents, path.resolve()))
        raise ConfigError(f"{path}: extends itself ({chain}); break the circle")
    root = compose_file(path)
    settings: dict[str, WrittenValue] = {}
    own = _flatten_node(path, root)
    base = own.pop("extends", None)
    if base is not None:
        if not isinstance(base.node, yaml.ScalarNode) or not base.node.value:
            raise ConfigError(
                f"{base.source}: extends = {shown_value(base.node)} is not a file; name one YAML file"
            )
        try:
            parent = path.parent / at_home(base.node.value)
        except ConfigError as error:
            raise ConfigError(f"{base.source}: extends = {base.node.value} {error}") from None
        if not os.path.isfile(parent):
            parent = packaged_file(base.node.value) or parent
        if not os.path.isfile(parent):
            raise ConfigError(
                f"{base.source}: extends = {base.node.value}: there is no file {parent}; "
                f"name it relative to {path.parent}"
            )
        settings = _read_file(parent, (*parents, path.resolve()))
    return settings | own


def compose_file(path: Path) -> yaml.MappingNode:
    """A file as a YAML mapping; ConfigError where it cannot be read as one."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        root = yaml.compose(text, Loader)
    except yaml.MarkedYAMLError as error:
        hint = "check indentation, colons and quotes"
        if r"'\t'" in str(error.problem):
            hint = "indent with spaces, not tabs"
        elif re.search("alias|anchor|tag|cannot start any token", f"{error.problem} {error.context}"):
            hint = 'a text that begins with * & ! % @ or ` is written in quotes, like "*.txt"'
        place = f"{path}:{error.problem_mark.line + 1 if error.problem_mark else 1}"
        raise ConfigError(f"{place}: is not YAML: {error.problem}; {hint}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply; settings are section.key") from None
    if root is None:
        raise ConfigError(f"{path}: is empty; write settings, or {{}} for all defaults")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{path}:{root.start_mark.line + 1}: {shown_value(root)} is not a section; "
            "write sections like training: with keys under them"
        )
    return root


def _flatten_node(path: Path, root: yaml.MappingNode) -> dict[str, WrittenValue]:
    """Dotted key -> setting, every key known and given once."""
    settings: dict[str, WrittenValue] = {}
    for name, node, source in _entries(path, root, ""):
        if name == "extends" or (name in leaves() and name in fields(Config)):
            settings[name] = WrittenValue(node, source)
        elif name in leaves():
            section, leaf = name.split(".")
            raise ConfigError(f"{source}: {name} is written in one word; write {leaf}: under {section}:")
        elif name not in fields(Config):
            raise ConfigError(f"{source}: {_unknown(name)}")
        elif isinstance(node, yaml.MappingNode):
            for key, own, own_source in _entries(path, node, f"{name}."):
                if key not in leaves():
                    raise ConfigError(f"{own_source}: {_unknown(key)}")
                settings[key] = WrittenValue(own, own_source)
        else:
            raise ConfigError(
                f"{source}: {name} = {shown_value(node)} is not a section; "
                f"write its keys under it, like {_example(name)}"
            )
    return settings


def _entries(path: Path, node: yaml.MappingNode, prefix: str) -> list[tuple[str, yaml.Node, str]]:
    """(dotted key, value node, "file:line") of a mapping; refuses a key given twice."""
    lines: dict[str, int] = {}
    entries = []
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{path}:{line}: {shown_value(key_node)} is not a key; write key: value")
        key = prefix + key_node.value
        if key in lines:
            raise ConfigError(f"{path}:{line}: {key} is given twice, first in line {lines[key]}; keep one")
        lines[key] = line
        entries.append((key, value, f"{path}:{line}"))
    return entries


def _read_override(text: str) -> tuple[str, WrittenValue]:
    """`--section.key=value` as a key and its setting."""
    key, equals, value = text.removeprefix("--").partition("=")
    if not text.startswith("--") or not key:
        raise ConfigError(f"{text!r} is not an override; write --section.key=value")
    if key in fields(Config) and key not in leaves():
        raise ConfigError(
            f"{text}: {key} is a section; set one of its keys, like --{_example(key).replace(': ', '=')}"
        )
    if key not in leaves():
        raise ConfigError(f"{text}: {_unknown(key)}")
    if not equals:
        raise ConfigError(f"{text}: no value; write --{key}=VALUE")
    return key, WrittenValue(override(value, leaves()[key]), text)


def _unknown(key: str) -> str:
    """Why `key` is refused: a feature that is not there, or an unknown key with the nearest known one."""
    if not key.rpartition(".")[2]:
        return f"{key!r} is an empty key; write a setting's name"
    if key.endswith(".extends"):
        return f"{key} is not a setting; write extends: at the top of the file, outside of sections"
    for part in (key, *key.split(".")):
        for pattern, reason in ABSENT:
            if re.fullmatch(pattern, part.lower()):
                return f"{key}: {reason}"
    known = list(leaves())
    section, _, leaf = key.rpartition(".")
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    siblings = [name for name in known if section and name.startswith(f"{section}.")]
    near = (
        same_leaf
        or difflib.get_close_matches(key, siblings, cutoff=0.75)
        or (not siblings and difflib.get_close_matches(key, [*known, *fields(Config)]))
    )
    if near:
        return f"{key} is not a setting; did you mean {near[0]}?"
    if siblings:
        return f"{key} is not a setting; {section} has {', '.join(n.removeprefix(f'{section}.') for n in siblings)}"
    return f"{key} is not a setting; the sections are {', '.join(fields(Config))}"


def _better(key: str, setting: WrittenValue, error: ConfigError) -> str:
    """A remedy that knows the key, where there is one."""
    text = str(setting.node.value).lower()
    for pattern, reason in ABSENT_VALUES.get(key, ()):
        if re.fullmatch(pattern, text):
            return f"is not possible: {reason}"
    choices = re.search(r"one of (.*)", str(error))
    near = difflib.get_close_matches(text, choices[1].split(", ")) if choices else []
    return f"{error}" + (f"; did you mean {near[0]}?" if near else "")


def _example(section: str) -> str:
    hint = fields(Config)[section]
    leaf = dataclasses.fields(hint)[0]
    return f"{section}.{leaf.name}: {scalar(getattr(hint(), leaf.name))}"


def scalar(value: Any) -> str:
    """A setting's value as YAML in one line."""
    text: str = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("...\n").strip("\n")  # not other white space: it may be the value
