"""The glossary names files and what is defined in them, in alphabetical order."""

import ast
import re

from tests.ranks import ROOT

TEXT = (ROOT / "docs/glossary.md").read_text()
# term, meaning, where
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TEXT.splitlines()
    if line.startswith("| ")
][1:]


def defined(path):
    """Names of the classes, functions and constants of a file."""
    names = set()
    for statement in ast.parse((ROOT / path).read_text()).body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            names |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return names


def missing(where):
    """What a cell names that does not exist: "`Name`, `Other` in `path`", or "`path`"."""
    names, lost = [], []
    for quoted in re.findall(r"`([^`]+)`", where):
        if "/" not in quoted:
            names.append(quoted)
        elif not (ROOT / quoted).is_file():
            lost.append(quoted)
        else:
            lost += [f"{name} in {quoted}" for name in names if name not in defined(quoted)]
            names = []
    return lost + names


def test_every_file_and_name_exists():
    assert len(ROWS) > 40
    assert {term: lost for term, _, where in ROWS if (lost := missing(where))} == {}
    assert all("`" in where and meaning.endswith(".") for _, meaning, where in ROWS)


def test_what_does_not_exist_is_found():
    assert missing("`Lane` in `hcmegatron/model/nodes.py`, `schedules/actions.py`") == []
    assert missing("`Track` in `hcmegatron/model/nodes.py`") == ["Track in hcmegatron/model/nodes.py"]
    assert missing("`schedules/no_such_file.py`") == ["schedules/no_such_file.py"]


def test_the_terms_are_in_alphabetical_order():
    terms = [term.strip("*").lower() for term, *_ in ROWS]
    assert terms == sorted(terms)
