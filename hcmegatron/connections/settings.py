"""A connection's settings from keyword arguments, checked one by one. Imports no torch."""

from __future__ import annotations

import difflib
import typing
from types import SimpleNamespace
from typing import Any, Literal

from hcmegatron.connections import accounting
from hcmegatron.connections.kinds.descriptor import ConnectionDescriptor, Settings, together


def settings_of(kind: str, hidden_size: int, given: dict[str, Any]) -> Settings:
    """What `connection` is given, over the kind's defaults.

    Args:
        given: by the names of the `connection` section; `streams` or `fractions` say n as the kind's paper does.

    Raises:
        ValueError: an unknown kind or setting, one that a connection does not read, or a value that it cannot have.
    """
    found = accounting.kind_of(SimpleNamespace(kind=kind))
    if not isinstance(hidden_size, int) or hidden_size < 1:
        raise ValueError(f"hidden_size={hidden_size!r}: must be a whole number of at least 1")
    named = _named(found, given)
    known = together([found.settings])
    for name, value in named.items():
        if name not in known:
            raise ValueError(f"{name}={value!r}: {_unknown(found, name)}")
        hint, own = known[name]
        if elsewhere := own.metadata["elsewhere"]:
            raise ValueError(f"{name}={value!r}: is not the connection's own; {elsewhere}")
        _check(name, value, hint)
    conn = SimpleNamespace(kind=kind, **{name: own.default for name, (_, own) in known.items()} | named)
    words = {
        "model.hidden_size": f"hidden_size={hidden_size}",
        "connection.n": f"{_n(found)}={getattr(conn, 'n', None)}",
    }

    def shown(key: str) -> str:
        name = key.removeprefix("connection.")
        return words.get(key) or f"{name}={getattr(conn, name)!r}"

    if problem := accounting.problem(conn, hidden_size, shown):
        text = "; ".join(problem).replace("connection.n", _n(found))
        raise ValueError(text.replace("connection.", "").replace("model.", ""))
    return conn


def changed(conn: Settings) -> dict[str, Any]:
    """How many streams or fractions, and the settings that are not the defaults."""
    kind = accounting.kind_of(conn)
    own = together([kind.settings])
    count = {_n(kind): getattr(conn, name) for name in own if name == "n"}
    values = {name: getattr(conn, name) for name in own if name != "n"}
    return count | {name: value for name, value in values.items() if value != own[name][1].default}


def _n(kind: ConnectionDescriptor) -> str:
    """What a kind's paper calls its n: of streams, which are contracted in the end, or of fractions."""
    return "streams" if "contract" in kind.fields else "fractions"


def _named(kind: ConnectionDescriptor, given: dict[str, Any]) -> dict[str, Any]:
    """With `streams` or `fractions` as n."""
    named = dict(given)
    if "n" in kind.fields and (word := _n(kind)) in named:
        if "n" in named:
            raise ValueError(
                f"{word}={named[word]!r} and n={named['n']!r} are the same setting; give one of them"
            )
        named["n"] = named.pop(word)
    return named


def _unknown(kind: ConnectionDescriptor, name: str) -> str:
    own = {name for name, (_, own) in together([kind.settings]).items() if not own.metadata["elsewhere"]}
    words = sorted(_n(kind) if each == "n" else each for each in own)
    if not words:
        return f"{kind.name} has no settings"
    near = difflib.get_close_matches(name, words, 1)
    return f"no setting of {kind.name}" + (
        f"; did you mean {near[0]}?" if near else f", which has {', '.join(words)}"
    )


def _check(name: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(typing.get_args(hint))}")
        return
    fits: tuple[type, ...] = {bool: (bool,), int: (int,), float: (int, float)}[hint]
    if not isinstance(value, fits) or (isinstance(value, bool) and hint is not bool):
        words = {bool: "True or False", int: "a whole number", float: "a number"}[hint]
        raise ValueError(f"{name}={value!r}: must be {words}")
