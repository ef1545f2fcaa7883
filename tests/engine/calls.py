"""The calls that Megatron-Core makes of Transformer Engine, read from its source without importing it.

What depends on the version of Transformer Engine is decided for one version: branches that it never takes are left
out. Keywords that are gathered in a dictionary before a call count as given, each by itself.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from packaging.version import Version

from tests.engine.signatures import RECORDED

CORE = Path(next(iter(find_spec("megatron.core").submodule_search_locations)))
EXTENSION = CORE / "extensions" / "transformer_engine.py"
USERS = (EXTENSION, CORE / "transformer" / "moe" / "moe_utils.py")


@dataclass
class Made:
    """A call: of what (`pytorch.Linear.forward`), where, with what."""

    target: str
    where: str
    positional: int
    keywords: set[str]
    gathered: set[str] = field(default_factory=set)  # some calls only


@cache
def calls(version: str) -> list[Made]:
    """Of both files, for one version of Transformer Engine."""
    decided = Version(version)
    names: dict[str, str] = {}
    found: list[Made] = []
    for path in USERS:
        tree = [node for node in ast.parse(path.read_text()).body if not _fails(node, version)]
        body = list(_live(tree, decided))
        for node in body:  # functions of Transformer Engine, under the names that Megatron gives them
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformer_engine."):
                place = node.module.removeprefix("transformer_engine.")
                names |= {alias.asname or alias.name: f"{place}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in names:
                names |= {t.id: names[node.value.id] for t in node.targets if isinstance(t, ast.Name)}
        for node in body:
            base = next((_te(b) for b in getattr(node, "bases", ()) if _te(b)), None)
            methods = node.body if isinstance(node, ast.ClassDef) else [node]
            for method in methods:
                if isinstance(method, ast.FunctionDef):
                    where = f"{path.name}: {getattr(node, 'name', '')}.{method.name}"
                    found += _in_function(method, base, names, where, decided, body)
    return found


def _fails(node: ast.stmt, version: str) -> bool:
    """Whether it tries to import what this version has not, though another does."""
    imports = [n for n in node.body if isinstance(n, ast.ImportFrom)] if isinstance(node, ast.Try) else []
    names = {f"{n.module}.{a.name}".removeprefix("transformer_engine.") for n in imports for a in n.names}
    somewhere = {name for recorded in RECORDED.values() for name in recorded}
    return bool(names & somewhere - RECORDED[version].keys())


def _in_function(function, base, names, where, version, module) -> Iterator[Made]:
    statements = list(_live(function.body, version, _asserted(function, version)))
    dictionaries = _gathered(statements, module)
    for statement in statements:
        for node in _expressions(statement):
            if isinstance(node, ast.Call) and (target := _target(node, base, names)):
                made = Made(target, f"{where}, line {node.lineno}", 0, set())
                made.positional = sum(not isinstance(a, ast.Starred) for a in node.args)
                for keyword in node.keywords:
                    if keyword.arg:
                        made.keywords.add(keyword.arg)
                    elif isinstance(keyword.value, ast.Name):
                        made.gathered |= dictionaries.get(keyword.value.id, set())
                    elif isinstance(keyword.value, ast.Call):
                        made.gathered |= _returned(keyword.value, module)
                yield made


def _target(call: ast.Call, base: str | None, names: dict[str, str]) -> str | None:
    if isinstance(call.func, ast.Name):
        return names.get(call.func.id)
    if isinstance(call.func, ast.Attribute):
        owner = call.func.value
        if isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super" and base:
            return f"{base}.{call.func.attr}"
        if name := _te(call.func):
            return f"{name}.__init__"
    return None


def _te(node: ast.expr) -> str | None:
    """`te.pytorch.Linear` -> pytorch.Linear."""
    text = ast.unparse(node)
    return text.removeprefix("te.") if text.startswith("te.pytorch.") and text.count(".") == 2 else None


def _gathered(statements: list[ast.stmt], module: list[ast.stmt]) -> dict[str, set[str]]:
    """Dictionary by dictionary, the keys that the statements put into it."""
    keys: dict[str, set[str]] = {}
    for node in statements:
        for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
            value = getattr(node, "value", None)
            if isinstance(target, ast.Name):
                into = keys.setdefault(target.id, set())
                if isinstance(value, ast.Dict):
                    into |= {k.value for k in value.keys if isinstance(k, ast.Constant)}
                elif isinstance(value, ast.Call) and getattr(value.func, "id", "") == "dict":
                    into |= {k.arg for k in value.keywords if k.arg}
                    for k in value.keywords:
                        if not k.arg and isinstance(k.value, ast.Name):
                            into |= keys.get(k.value.id, set())
                elif isinstance(value, ast.Call):
                    into |= _returned(value, module)
            elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
                keys.setdefault(ast.unparse(target.value), set()).add(target.slice.value)
    return keys


def _returned(call: ast.Call, module: list[ast.stmt]) -> set[str]:
    """Keys of the dictionary that a function of the module makes."""
    for node in module:
        if isinstance(node, ast.FunctionDef) and node.name == getattr(call.func, "id", None):
            found = _gathered([n for n in ast.walk(node) if isinstance(n, ast.Assign)], [])
            return set().union(*found.values())
    return set()


def _expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """All below a statement that is in no statement of its own."""
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt):
            yield from ast.walk(child)


def _asserted(function: ast.FunctionDef, version: Version) -> set[str]:
    """Conditions that a function asserts not to hold under this version."""
    return {
        ast.unparse(node.test)
        for node in ast.walk(function)
        if isinstance(node, ast.If)
        and any(isinstance(s, ast.Assert) and _decided(s.test, version) is False for s in node.body)
    }


def _live(body: list[ast.stmt], version: Version, never: Collection[str] = ()) -> Iterator[ast.stmt]:
    """The statements that this version can come to, those of nested blocks after what holds them."""
    for node in body:
        if isinstance(node, ast.If):
            taken = False if ast.unparse(node.test) in never else _decided(node.test, version)
            if taken is None:
                yield node
            yield from _live(node.body if taken is not False else [], version, never)
            yield from _live(node.orelse if taken is not True else [], version, never)
            continue
        yield node
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _live(getattr(node, part, []), version, never)
            for handler in getattr(node, "handlers", []):
                yield from _live(handler.body, version, never)


def _decided(test: ast.expr, version: Version) -> bool | None:
    """Whether a condition on the version of Transformer Engine holds; None for any other."""
    if isinstance(test, ast.Name) and test.id == "HAVE_TE":
        return True
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        operand = _decided(test.operand, version)
        return None if operand is None else not operand
    if isinstance(test, ast.BoolOp):
        values = [_decided(value, version) for value in test.values]
        ends = isinstance(test.op, ast.Or)
        return ends if ends in values else (None if None in values else not ends)
    if isinstance(test, ast.Call) and getattr(test.func, "id", "") == "is_te_min_version":
        if not isinstance(test.args[0], ast.Constant):
            return None
        least, strict = (
            Version(test.args[0].value),
            any(ast.unparse(k) == "check_equality=False" for k in test.keywords),
        )
        return version > least if strict else version >= least
    return None
