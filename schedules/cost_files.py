"""Costs files, JSON or YAML, read strictly: every key once, numbers as JSON and YAML 1.2 write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from schedules.yaml_scalars import TAG, core_schema

MOST_DEPTH = 8  # what costs need is 3: links, their ends, their values
MOST_VALUES = 100_000


@core_schema
class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for at, key in enumerate(keys):
            if key in keys[:at]:
                raise ValueError(
                    f"line {node.value[at][0].start_mark.line + 1}: {key!r} is given twice; keep one"
                )
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))  # 010 is ten


_Loader.add_constructor(TAG + "int", _Loader.construct_int)


def load_costs(path: Path) -> Any:
    """What the file holds. ValueError, without the file's name, where it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ValueError(error.strerror) from None
    try:
        found = _yaml(text) if path.suffix in (".yaml", ".yml") else json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("is nested too deeply; costs are keys with numbers or lists") from None
    _bounded(found)
    return found


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given twice; keep one")
        found[key] = value
    return found


def _bounded(found: Any) -> None:
    """ValueError where values are nested deeper, or are more, than any costs: no error could show them."""
    layer, count = [found], 0
    for _ in range(MOST_DEPTH):
        layer = [
            inner
            for value in layer
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        count += len(layer)
        if count > MOST_VALUES:
            raise ValueError(f"holds more than {MOST_VALUES} values")
    if layer:
        raise ValueError("is nested too deeply; costs are keys with numbers or lists")
