"""Every place where the program orders streams or keeps memory for them, found in its source. No torch."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("hcmegatron", "schedules")
# Called by these names, on receivers whose source matches: streams, events, tensors and works of torch's, and the
# project's own words for the same. What else has such a name and receiver is exempt by name (controls.py).
CALLS = {
    "wait_event": "",
    "wait_stream": "",
    "record_stream": "",
    "synchronize": "",
    "is_completed": "",
    "wait": "",
    "start_param_sync": "",
    "_used_here": "",
    "_kept_by_dispatcher": "",
    "join": r"graph",  # MicroBatchGraph.join
    "on": r"lanes$",  # Lanes.on
}


@dataclass(frozen=True)
class Site:
    """A call, named by file, function and what is called, which outlast a change of lines.

    Attributes:
        number: counts from 1 where a function has several alike.
        lines: of the call.
    """

    file: str
    function: str
    call: str
    number: int
    lines: tuple[int, int] = field(compare=False)

    def __str__(self) -> str:
        return f"{self.file} {self.function} {self.call}" + (f" {self.number}" if self.number > 1 else "")

    def holds(self, frame: FrameType | None) -> bool:
        """Whether the frame is at the call."""
        if frame is None:
            return False
        first, last = self.lines
        return first <= frame.f_lineno <= last and frame.f_code.co_filename == str(ROOT / self.file)


@dataclass(frozen=True)
class Inside:
    """A call of others' that comes from within one of their functions."""

    function: str
    call: str = "wait"

    def __str__(self) -> str:
        return f"megatron-core's {self.function} {self.call}"

    def holds(self, frame: FrameType | None) -> bool:
        """Whether the function is under way."""
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_name != self.function:
            frame = frame.f_back
        return frame is not None


@cache
def sites() -> dict[str, Site]:
    """By name."""
    found = [
        site
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for site in in_source(path.read_text(), str(path.relative_to(ROOT)))
    ]
    return {str(site): site for site in found}


def in_source(source: str, file: str) -> list[Site]:
    """Those of one file."""
    finder = _Finder(file)
    finder.visit(ast.parse(source))
    return finder.found


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str) -> None:
        self.file, self.names, self.found = file, [], []
        self.counts: Counter[tuple[str, str]] = Counter()

    def _inside(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        self.names.append(node.name)
        self.generic_visit(node)
        self.names.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _inside

    def visit_Call(self, node: ast.Call) -> None:
        called, receiver = node.func, ""
        if isinstance(called, ast.Attribute):
            name, receiver = called.attr, ast.unparse(called.value)
        else:
            name = called.id if isinstance(called, ast.Name) else ""
        if name in CALLS and re.search(CALLS[name], receiver):
            function = ".".join(self.names)
            self.counts[function, name] += 1
            number = self.counts[function, name]
            lines = node.lineno, node.end_lineno
            self.found.append(Site(self.file, function, name, number, lines))
        self.generic_visit(node)
