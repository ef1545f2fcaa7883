"""Records the signatures of Transformer Engine's PyTorch modules, read from its published source without running it.

    pip download --no-deps transformer_engine==2.14.0
    python -m tools.te_signatures transformer_engine-2.14.0-py3-none-any.whl

The wheel of that name holds the Python modules (transformer_engine_torch has the compiled ones). A source archive or
an unpacked folder will do as well. What is found is written beside what other versions had, into the file that the
tests' stub is built from and that Megatron's calls are held against.
"""

from __future__ import annotations

import argparse
import ast
import json
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OUT = Path(__file__).parent.parent / "tests" / "engine" / "signatures.json"

# Public names as Megatron-Core imports them, with the methods that it or this project calls; "" is the function itself.
MODULE = ("__init__", "forward", "backward_dw", "need_backward_dw")
NAMES: dict[str, tuple[str, ...]] = {
    "pytorch.Linear": MODULE,
    "pytorch.LayerNormLinear": MODULE,
    "pytorch.GroupedLinear": MODULE,
    "pytorch.LayerNorm": ("__init__",),
    "pytorch.RMSNorm": ("__init__",),
    "pytorch.DotProductAttention": ("__init__", "forward", "set_context_parallel_group"),
    "pytorch.Fp8Padding": ("__init__", "forward"),
    "pytorch.Fp8Unpadding": ("__init__", "forward"),
    "pytorch.module._common.WeightGradStore": (
        "__init__",
        "delay_wgrad_compute",
        "enable_delay_wgrad_compute",
        "disable_delay_wgrad_compute",
        "put",
        "pop",
        "assert_empty",
    ),
    "pytorch.distributed.CudaRNGStatesTracker": (
        "__init__",
        "reset",
        "get_states",
        "set_states",
        "add",
        "fork",
    ),
    "pytorch.distributed.checkpoint": ("",),
    "pytorch.permutation.moe_permute": ("",),
    "pytorch.permutation.moe_permute_with_probs": ("",),
    "pytorch.permutation.moe_permute_and_pad_with_probs": ("",),
    "pytorch.permutation.moe_unpermute": ("",),
    "pytorch.permutation.moe_sort_chunks_by_index": ("",),
    "pytorch.permutation.moe_sort_chunks_by_index_with_probs": ("",),
    "pytorch.attention.rope.apply_rotary_pos_emb": ("",),
    "pytorch.cross_entropy.parallel_cross_entropy": ("",),
    "pytorch.cpp_extensions.general_gemm": ("",),
    "pytorch.module.base.get_workspace": ("",),
    "pytorch.module.base.get_dummy_wgrad": ("",),
    "pytorch.cpu_offload.get_cpu_offload_context": ("",),
    "pytorch.router.fused_topk_with_score_function": ("",),
    "pytorch.router.fused_compute_score_for_moe_aux_loss": ("",),
    "pytorch.router.fused_moe_aux_loss": ("",),
    "pytorch.fp8.fp8_autocast": ("",),
    "pytorch.fp8.fp8_model_init": ("",),
    "pytorch.optimizers.FusedAdam": ("__init__",),
    "pytorch.optimizers.FusedSGD": ("__init__",),
}


class Source:
    """The Python modules of a package, as parsed text.

    Args:
        path: a wheel, a source archive, or a folder that holds the package's own.

    Raises:
        SystemExit: no transformer_engine in there.
    """

    def __init__(self, path: Path, package: str = "transformer_engine") -> None:
        self.package = package
        self.texts: dict[str, str] = {}
        self.version = ""
        for name, text in _files(path):
            at = f"/{name}".find(f"/{package}/")
            if name.endswith(("METADATA", "PKG-INFO")) and not self.version:
                lines = [line for line in text.splitlines() if line.startswith("Version: ")]
                self.version = lines[0].removeprefix("Version: ") if lines else ""
            elif at >= 0 and name.endswith(".py"):
                dotted = name[at:].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                self.texts[dotted] = text
        if f"{package}.pytorch.module.linear" not in self.texts:
            raise SystemExit(f"te_signatures: {path} has no {package}/pytorch/module/linear.py")

    @cache  # noqa: B019  (one source a run)
    def module(self, dotted: str) -> ast.Module | None:
        """The module's syntax tree; None where there is none."""
        return ast.parse(self.texts[dotted]) if dotted in self.texts else None

    def find(self, module: str, name: str, depth: int = 0) -> tuple[str, ast.stmt] | None:
        """Where a module's name is defined, imports followed: (module, class or function)."""
        tree = self.module(module)
        if tree is None or depth > 8:
            return None
        for node in _statements(tree.body):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                return module, node
        for node in _statements(tree.body):
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(ast.unparse(target) == name for target in targets) and isinstance(node.value, ast.Name):
                return self.find(module, node.value.id, depth + 1)
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) in (name, "*"):
                        where = self._absolute(module, node)
                        wanted = name if alias.name == "*" else alias.name
                        if found := self.find(where, wanted, depth + 1):
                            return found
        return None

    def method(self, module: str, owner: ast.ClassDef, name: str) -> ast.FunctionDef | None:
        """A class's method, its bases' where it has none of its own."""
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return node
        for base in owner.bases:
            if isinstance(base, ast.Name) and (found := self.find(module, base.id)):
                where, parent = found
                if isinstance(parent, ast.ClassDef) and (method := self.method(where, parent, name)):
                    return method
        return None

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        inside = [m for m in self.texts if m.startswith(f"{module}.")]
        parts = module.split(".")
        keep = len(parts) - node.level + (1 if inside else 0)
        return ".".join([*parts[:keep], *([node.module] if node.module else [])])


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module, what stands under `if` and `try` included."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try):
                yield from _statements(getattr(node, part, []))


def _files(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        for file in sorted([*path.rglob("*.py"), *path.rglob("METADATA"), *path.rglob("PKG-INFO")]):
            yield file.relative_to(path).as_posix(), file.read_text()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith((".py", "METADATA", "PKG-INFO")):
                    yield name, archive.read(name).decode()
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith((".py", "METADATA", "PKG-INFO")):
                    yield member.name, archive.extractfile(member).read().decode()


def parameters(function: ast.FunctionDef) -> str:
    """A function's parameters as it writes them, without annotations."""
    for argument in ast.walk(function.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(function.args)


def signatures(source: Source) -> dict[str, str]:
    """Of every name in NAMES that this version has: `pytorch.Linear.forward` -> its parameters, in Python."""
    found = {}
    for public, methods in NAMES.items():
        module, _, name = f"{source.package}.{public}".rpartition(".")
        place = source.find(module, name)
        for method in methods if place else ():
            where, node = place
            function = source.method(where, node, method) if method else node
            if function is not None:
                found[f"{public}.{method}".rstrip(".")] = parameters(function)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, nargs="*", help="wheels, source archives or folders")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if not options.source:
        parser.error("nothing to read: name a wheel, a source archive or a folder")
    recorded = json.loads(options.out.read_text()) if options.out.exists() else {}
    for path in options.source:
        source = Source(path)
        recorded[source.version] = signatures(source)
        missing = [
            name for name in NAMES if not any(key.startswith(name) for key in recorded[source.version])
        ]
        print(
            f"{source.version}: {len(recorded[source.version])} signatures; absent: {', '.join(missing) or '-'}"
        )
    ordered = {version: recorded[version] for version in sorted(recorded, key=_number)}
    options.out.write_text(json.dumps(ordered, indent=1) + "\n")


def _number(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:3] if part.isdigit()]


if __name__ == "__main__":
    main()
