"""What docs/architecture.md names is there."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.architecture.sources import modules
from tests.ranks import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text()
NAME = re.compile(r"((?:\w+/)*\w+\.py)(?::([A-Za-z_][\w.]*\w))?")


@cache
def paths() -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for folder in ("hcmegatron", "launch", "schedules", "tests", "tools")
        for path in (ROOT / folder).rglob("*.py")
    ]


def has(path: str, symbol: str) -> bool:
    """Whether the file has a function or class of this name, methods as Class.method."""
    scope: ast.AST = ast.parse((ROOT / path).read_text())
    for name in symbol.split("."):
        kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        found = [node for node in scope.body if isinstance(node, kinds) and node.name == name]
        if not found:
            return False
        scope = found[0]
    return True


def missing(text: str) -> list[str]:
    """Names that are not there: of a path whose folders are left out, in no file that ends so."""
    lost = []
    for path, symbol in set(NAME.findall(text)):
        files = [each for each in paths() if each == path or each.endswith(f"/{path}")]
        if not any(not symbol or has(file, symbol) for file in files):
            lost.append(f"{path}:{symbol}")
    return sorted(lost)


def test_every_file_and_function_that_is_named_exists():
    assert len(set(NAME.findall(TEXT))) > 80
    assert missing(TEXT) == []


@pytest.mark.parametrize("block", re.findall(r"```mermaid\n(.*?)```", TEXT, re.DOTALL))
def test_pictures_show_what_the_steps_name(block):
    steps = {(path, symbol) for path, symbol in NAME.findall(TEXT.replace(block, "")) if symbol}
    shown = [(path, symbol) for path, symbol in NAME.findall(block) if symbol]
    assert len(shown) > 4
    for path, symbol in shown:
        assert any(file.endswith(path) and name.startswith(symbol) for file, name in steps), (path, symbol)


def test_a_name_that_is_gone_is_found():
    text = "`hcmegatron/model/gpt.py:ConnectionGPT.forward`, `model/gpt.py:unwrap`, `model/gpt.py:Nobody`"
    assert missing(text) == ["model/gpt.py:Nobody"]
    assert missing("`hcmegatron/model/gpt.py:ConnectionGPT.backward`, `no/such.py`") == [
        "hcmegatron/model/gpt.py:ConnectionGPT.backward",
        "no/such.py:",
    ]


def test_the_longest_functions_are_the_ones_named():
    functions = sorted(
        (
            (1 + node.end_lineno - node.lineno, f"{name.replace('.', '/')}.py:{node.name}")
            for name, tree in modules().items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
        ),
        reverse=True,
    )
    named = re.findall(r"^\| `([\w/.]+:\w+)` \| (\d+) \|", TEXT, re.MULTILINE)
    assert [(int(lines), name) for name, lines in named] == functions[:3]


def test_the_readme_leads_here():
    assert "docs/architecture.md" in (ROOT / "README.md").read_text()
