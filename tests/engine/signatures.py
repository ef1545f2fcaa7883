"""Transformer Engine's signatures as tools/te_signatures.py read them from its published source, by version."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORDED: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "signatures.json").read_text())

# What each Megatron generation asks for: 0.16.1's requirements name 2.9 to 2.11; 0.19.2 names none, and the newest
# version that it tests for is 2.14.
GENERATIONS = {"0.16": ("2.9.0", "2.11.0"), "0.19": ("2.14.0", "2.20.2")}


def versions() -> tuple[str, ...]:
    """Of Transformer Engine, those that belong to the Megatron-Core installed here."""
    megatron = importlib.metadata.version("megatron-core")
    return GENERATIONS[".".join(megatron.split(".")[:2])]


def signature(version: str, name: str) -> inspect.Signature:
    """Of `pytorch.Linear.forward` and the like. A default that is no literal is its text."""
    (function,) = ast.parse(f"def f({RECORDED[version][name]}): ...").body
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [inspect.Parameter.empty] * (len(positional) - len(given.defaults)) + given.defaults
    kinds = inspect.Parameter
    found = [
        kinds(a.arg, kinds.POSITIONAL_OR_KEYWORD, default=_value(d))
        for a, d in zip(positional, defaults, strict=True)
    ]
    if given.vararg:
        found.append(kinds(given.vararg.arg, kinds.VAR_POSITIONAL))
    found += [
        kinds(a.arg, kinds.KEYWORD_ONLY, default=_value(kinds.empty if d is None else d))
        for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    if given.kwarg:
        found.append(kinds(given.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(found)


def _value(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return default
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)


def recorded(name: str, version: str | None = None) -> Callable[[Callable], Callable]:
    """Gives a function of the stub the recorded signature, and its arguments by keyword, defaults included."""

    def decorate(function: Callable) -> Callable:
        own = signature(version or versions()[0], name)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = own.bind(*args, **kwargs)
            bound.apply_defaults()
            return function(**bound.arguments)

        call.__signature__ = own
        return call

    return decorate
