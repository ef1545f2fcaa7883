"""Files import one another in one direction only."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Literal

from tests.architecture.sources import modules

When = Literal[
    "first", "called", "typing"
]  # at the file's import, when a function runs, for type checkers alone

# An observer is made of the run that it watches, and the run tells its observers: the loop's own words. Set-up also
# asks the observer that plans whether the run has room.
FOR_TYPES_ALONE = [[f"hcmegatron.training.{name}" for name in ("metrics", "observer", "planned", "setup")]]


def imports(tree: ast.AST, known: Mapping[str, object], when: When = "first") -> Iterator[tuple[str, When]]:
    """What a file imports of `known`, and when. A file in a package also runs the package's __init__.py."""
    for node in ast.iter_child_nodes(tree):
        inside = when
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == "first":
            inside = "called"
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inside = "typing"
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield from (
                (package, inside)
                for end in range(1, len(parts) + 1)
                if (package := ".".join(parts[:end])) in known
            )
        yield from imports(node, known, inside)


def graph(trees: Mapping[str, ast.AST], *times: When) -> dict[str, set[str]]:
    """Whom every file imports at these times, itself and the packages that it is in left out."""
    return {
        name: {
            target
            for target, when in imports(tree, trees)
            if when in times and not f"{name}.".startswith(f"{target}.")
        }
        for name, tree in trees.items()
    }


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Files that reach each other, each set once (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in edges[name]:
            if target not in index:
                visit(target)
            if target in stack:
                low[name] = min(low[name], low[target])
        if low[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.append(sorted(component))

    for name in edges:
        if name not in index:
            visit(name)
    return sorted(found)


def test_no_file_imports_itself_by_way_of_others():
    assert len(modules()) > 200
    assert cycles(graph(modules(), "first")) == []


def test_nor_when_its_functions_run():
    assert cycles(graph(modules(), "first", "called")) == []


def test_types_alone_make_one_cycle():
    assert cycles(graph(modules(), "first", "called", "typing")) == FOR_TYPES_ALONE


def test_cycles_are_found_whenever_they_are_made():
    files = {
        "p": "",
        "p.a": "from p import b",
        "p.b": "import p.c",
        "p.c": "def f():\n    from p.d import x",
        "p.d": "if TYPE_CHECKING:\n    from p.a import y",
        "q": "from q.e import z",
        "q.e": "import q",
    }
    trees = {name: ast.parse(text) for name, text in files.items()}
    assert graph(trees, "first") == {
        "p": set(),
        "p.a": {"p", "p.b"} - {"p"},
        "p.b": {"p.c"},
        "p.c": set(),
        "p.d": set(),
        "q": {"q.e"},
        "q.e": set(),
    }
    assert cycles(graph(trees, "first", "called")) == []
    assert cycles(graph(trees, "first", "called", "typing")) == [["p.a", "p.b", "p.c", "p.d"]]
    assert cycles({"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"c"}}) == [["a", "b"], ["c", "d"]]
