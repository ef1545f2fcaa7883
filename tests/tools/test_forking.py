"""Programs that fork ranks hide GPUs before anything of this project's can ask for one."""

import ast
import re
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
FORKING = [
    path.name
    for path in sorted(TOOLS.glob("*.py"))
    if re.search(r'\(\s*"fork"|="fork"|\blaunch_ranks\(|nprocs=', path.read_text())
]


@pytest.mark.parametrize("name", FORKING)
def test_gpus_are_hidden_before_the_first_question(name):
    for node in ast.parse((TOOLS / name).read_text()).body:
        if isinstance(node, ast.If):
            assert ast.unparse(node) == (
                "if __name__ == '__main__':\n    os.environ['CUDA_VISIBLE_DEVICES'] = ''"
            )
            return
        module = node.names[0].name if isinstance(node, ast.Import) else getattr(node, "module", None)
        assert (module or "").split(".")[0] not in (
            "hcmegatron",
            "launch",
            "megatron",
            "schedules",
            "tools",
        ), module
    raise AssertionError(f"{name} hides nothing")


def test_there_are_such_programs():
    assert {"bench_link.py", "bench_overlap.py", "bench_pipeline.py"} <= set(FORKING)
