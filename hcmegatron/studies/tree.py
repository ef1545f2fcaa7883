"""A study file as a tree of entries that know where they were written; variants and overrides laid over it.

A file has two levels that can be changed one by one: its keys, and those of its sections. What is below is replaced as
a whole.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import PLACES, at_home, compose_file
from hcmegatron.config.ranges import check_value
from hcmegatron.config.types import TAG, Loader, convert_value, leaves, shown_value

OVERRIDE = "--study."


@dataclass(frozen=True)
class Entry:
    """A value of a study.

    Attributes:
        key: its place, dotted: axes.seed.
        source: "file:line", or the override as typed.
    """

    key: str
    node: yaml.Node
    source: str

    def error(self, why: str) -> ConfigError:
        """One line: where, key, value, and `why`, which ends in what to do."""
        what = f"{self.source}: {self.key} = {shown_value(self.node)}"
        if self.source.startswith("--"):  # which says key and value
            what = f"{self.source}:"
        return ConfigError(f"{what}{'' if why.startswith(',') else ' '}{why}")

    @property
    def is_null(self) -> bool:
        """Whether nothing is written, or null."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == TAG + "null"

    @property
    def is_mapping(self) -> bool:
        """Whether it has keys of its own."""
        return isinstance(self.node, yaml.MappingNode)

    def entries(self) -> dict[str, Entry]:
        """Key -> entry of a mapping.

        Raises:
            ConfigError: it is none, or has a key twice.
        """
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error("is not a section; write its keys under it, key: value")
        found: dict[str, Entry] = {}
        for key_node, node in self.node.value:
            source = self._source(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{source}: {shown_value(key_node)} is not a key; write key: value")
            name = key_node.value
            if name in found:
                raise ConfigError(
                    f"{source}: {self._below(name)} is given twice, first at {found[name].source}; keep one"
                )
            found[name] = Entry(self._below(name), node, source)
        return found

    def items(self) -> list[Entry]:
        """The entries of a list that has some.

        Raises:
            ConfigError: it is none, or empty.
        """
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error("is not a list; write [one, or, more]")
        if not self.node.value:
            raise self.error("is empty; give it a value or leave it out")
        return [Entry(self.key, node, self._source(node)) for node in self.node.value]

    def value(self, hint: Any) -> Any:
        """As a value of that type; ConfigError where it is none."""
        try:
            return convert_value(self.node, hint)
        except ConfigError as error:
            raise self.error(str(error)) from None

    def setting(self, key: str) -> Any:
        """As the value of a configuration's setting.

        Raises:
            ConfigError: the setting is unknown, or the value is none of its.
        """
        self.require_setting(key)
        try:
            value = convert_value(self.node, leaves()[key])
            check_value(key, value)
        except ConfigError as error:
            raise self.error(str(error) if self.key.endswith(key) else f", for {key}, {error}") from None
        if key in PLACES and value is not None:
            value = at_home(value) if isinstance(value, str) else [at_home(path) for path in value]
        return value

    def made(self, key: str, value: Any) -> Any:
        """A value that this entry has led to, where the setting can have it; ConfigError where it cannot."""
        try:
            check_value(key, value)
        except ConfigError as error:
            raise self.error(f"makes {key} = {value}, which {error}") from None
        return value

    def require_setting(self, key: str) -> None:
        """ConfigError where a configuration has no such setting."""
        if key not in leaves():
            near = difflib.get_close_matches(key, leaves(), 1)
            hint = f"did you mean {near[0]}?" if near else "hcmegatron config --help lists them"
            raise self.error(f"names no setting of a configuration ({key}); {hint}")

    def _below(self, name: str) -> str:
        return f"{self.key}.{name}" if self.key else name

    def _source(self, node: yaml.Node) -> str:
        """Where a part of it was written."""
        if self.source.startswith("--"):
            return self.source
        return f"{self.source.rpartition(':')[0]}:{node.start_mark.line + 1}"


Tree = dict[str, "Entry | dict[str, Entry]"]


def read_tree(path: Path, sections: Collection[str], known: Collection[str]) -> Tree:
    """The keys of a file; of those in `sections`, their own keys.

    Raises:
        ConfigError: it is no such file.
    """
    root = Entry("", compose_file(path), f"{path}:1")
    tree: Tree = {}
    _lay(tree, root.entries().values(), sections, known)
    return tree


def lay_over(tree: Tree, variant: Entry, sections: Collection[str], known: Collection[str]) -> None:
    """A variant's keys in place of the file's; of sections, key by key. A key of null takes the file's away."""
    prefix = f"{variant.key}."
    own = [Entry(e.key.removeprefix(prefix), e.node, e.source) for e in variant.entries().values()]
    _lay(tree, own, sections, known)


def override(tree: Tree, text: str, sections: Collection[str], known: Collection[str]) -> None:
    """`--study.KEY=VALUE`, of which a section's key is SECTION.KEY.

    Raises:
        ConfigError: it is none, or its value is no YAML.
    """
    key, equals, value = text.removeprefix(OVERRIDE).partition("=")
    if not text.startswith(OVERRIDE) or not key or not equals:
        raise ConfigError(
            f"{text}: is no setting of a study; write {OVERRIDE}KEY=VALUE, like {OVERRIDE}retries=1"
        )
    try:
        node = yaml.compose(value, Loader) or yaml.ScalarNode(TAG + "null", "")
    except yaml.YAMLError:
        raise ConfigError(f"{text}: the value is not YAML; put it in quotes") from None
    section, _, leaf = key.partition(".")
    if section in sections and leaf:
        mapping = yaml.MappingNode(TAG + "map", [(yaml.ScalarNode(TAG + "str", leaf), node)])
        _lay(tree, [Entry(section, mapping, text)], sections, known)
    else:
        _lay(tree, [Entry(key, node, text)], sections, known)


def refuse_unknown(entry: Entry, name: str, known: Iterable[str]) -> None:
    """ConfigError where `name`, the last part of the entry's key, is none of those."""
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise entry.error(f"is unknown; {hint}")


def _lay(tree: Tree, entries: Iterable[Entry], sections: Collection[str], known: Collection[str]) -> None:
    for entry in entries:
        refuse_unknown(entry, entry.key, known)
        if entry.is_null:
            tree.pop(entry.key, None)
        elif entry.key in sections:
            below = tree.setdefault(entry.key, {})
            assert isinstance(below, dict)
            for name, own in entry.entries().items():
                if own.is_null and entry.key != "settings":
                    below.pop(name, None)
                else:
                    below[name] = own
        else:
            tree[entry.key] = entry
