"""What tests share has one way: worker modules, references to their functions, packages, small configurations."""

import ast
import re
from functools import cache

from tests.ranks import ROOT

FILES = sorted((ROOT / "tests").rglob("*.py"))
NAMED = re.compile(r"(?:tests|tools)(?:\.\w+)+:\w*")
# Worker functions that are called by name, since importing their module changes the process that does: Transformer
# Engine's stub, emulated streams and NCCL, Triton's interpreter, a patched loader. The others run commands by name.
BY_NAME = (
    "tests.engine.",
    "tests.pipeline.emulated_",
    "tests.pipeline.disturbed",
    "tests.races.",
    "tests.fuzz.",
)
BY_NAME += ("tests.tools.gpu_", "tests.descriptors.", "tests.training.observer_workers")
BY_NAME += ("tests.training.health_workers", "tests.profiling.gpu_", "tools.")


@cache
def tree(path):
    return ast.parse(path.read_text())


def where(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """Every name that a file imports, with its module in front."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def texts(path):
    return (
        node.value
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def is_file(name):
    return (ROOT / f"{name.replace('.', '/')}.py").exists()


def test_no_file_imports_a_module_of_tests():
    """What two of them need is in a file of its own."""
    shared = [
        (where(path), name)
        for path in [*FILES, *(ROOT / "tools").rglob("*.py")]
        for name in imports(path)
        for module in ([name] if is_file(name) else [name.rpartition(".")[0]])
        if module.rpartition(".")[2].startswith("test_")
    ]
    assert shared == []


def test_every_folder_is_a_package_and_its_files_are_imported_by_their_whole_name():
    folders = {path.parent for path in FILES}
    assert [where(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
    bare = [
        (where(path), name)
        for path in FILES
        for name in imports(path)
        if path.parent != ROOT / "tests" and (path.parent / f"{name.split('.')[0]}.py").exists()
    ]
    assert bare == []


def test_modules_of_rank_functions_are_called_workers():
    assert [where(path) for path in FILES if path.stem.endswith("_ranks") and path.stem != "test_ranks"] == []


def test_rank_functions_are_named_by_themselves_and_those_in_words_are_there():
    """An editor follows the one, and this test the other."""
    found = [(where(path), name) for path in FILES for name in texts(path) if NAMED.fullmatch(name)]
    assert len(found) > 10
    for path, name in found:
        module, _, function = name.partition(":")
        assert module.startswith(BY_NAME), f"{path}: {name}: import the module and hand over its function"
        if function:  # otherwise it follows in a name that the test puts behind
            file = ROOT / f"{module.replace('.', '/')}.py"
            assert function in {n.name for n in tree(file).body if hasattr(n, "name")}, f"{path}: {name}"


def test_settings_of_sections_are_put_in_one_place():
    loop = re.compile(r"for section, \w+ in .*\n.*for .*\n +setattr\(getattr\(")
    assert [where(path) for path in FILES if loop.search(path.read_text())] == ["tests/small_configs.py"]
