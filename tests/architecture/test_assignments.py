"""No room changes another's objects: what a class of one room keeps is assigned to in that room alone.

Tools are free to: they set up configurations, and take the program apart to measure it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping

from tests.architecture.sources import modules, room

OWN = {"self", "cls", "ctx"}

# Attributes of the same names as ours, on objects that are not ours.
NAMESAKES = {
    ("hcmegatron.cli", "more"): "of the command line's options, which the verb's main reads",
    ("hcmegatron.connections.build", "_connection"): "our mark on a parameter",
    ("hcmegatron.data.huggingface", "decoder"): "of the library's tokenizers",
    ("hcmegatron.kernels.compile_offline", "run"): "Triton's compiled functions",
    ("hcmegatron.model.gpt", "shared"): "Megatron's mark on a parameter",
    ("hcmegatron.model.te_wgrad", "wgrad_store"): "of Transformer Engine's layers",
    ("hcmegatron.pipeline.megatron_schedule", "config"): "of Megatron's wrapper of a chunk",
    ("hcmegatron.pipeline.megatron_schedule", "hidden_size"): "of Megatron's configuration, copied",
    ("hcmegatron.profiling.cli", "restarts"): "of the command line's options, which `train` reads",
    ("schedules.cli", "error"): "argparse's parser",
}


def owned(trees: Mapping[str, ast.AST]) -> dict[str, set[str]]:
    """By attribute or method, the rooms whose classes have one of that name."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, tree in trees.items():
        for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            for node in ast.walk(kind):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    if ast.unparse(node.value) == "self":
                        found[node.attr].add(room(name))
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found[node.target.id].add(room(name))
                elif isinstance(node, ast.FunctionDef):
                    found[node.name].add(room(name))
    return found


def assigned(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Attributes of objects other than the method's own that are set, with their lines."""
    for node in ast.walk(tree):
        set_here = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if set_here and ast.unparse(node.value) not in OWN:
            yield node.attr, node.lineno


def foreign(trees: Mapping[str, ast.AST]) -> dict[tuple[str, str], list[int]]:
    """By file and attribute, the lines where what other rooms' classes alone have is set."""
    owners, found = owned(trees), defaultdict(list)
    for name, tree in trees.items():
        for attribute, line in assigned(tree):
            if attribute in owners and room(name) not in owners[attribute]:
                found[name, attribute].append(line)
    return dict(found)


def rooms() -> dict[str, ast.Module]:
    return {name: tree for name, tree in modules().items() if not name.startswith("tools")}


def test_only_a_room_sets_what_its_classes_keep():
    assert foreign(rooms()).keys() == NAMESAKES.keys(), foreign(rooms())


def test_an_attribute_set_from_another_room_is_found():
    texts = {
        "hcmegatron.model.block": "class Block:\n    def __init__(self):\n        self.traverse = None",
        "hcmegatron.model.gpt": "def f(block):\n    block.traverse = 1",
        "hcmegatron.pipeline.overlap": "def f(model):\n    model.decoder.traverse, model.else_ = 1, 2",
        "hcmegatron.pipeline.chunk_stage": "class Own:\n    def f(self):\n        self.traverse = 1",
    }
    trees = {name: ast.parse(text) for name, text in texts.items()}
    assert foreign(trees) == {}, "a room whose classes have one of that name may set it"
    del trees["hcmegatron.pipeline.chunk_stage"]
    assert foreign(trees) == {("hcmegatron.pipeline.overlap", "traverse"): [2]}
