"""Machines as data: what a GPU, its node and the network between nodes can do, each figure with its source.

A figure marked "assumed" is nobody's measurement: replace it by your own in a YAML file (`load_machine`), which may
build on a machine of this table with `extends: h100`.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import yaml

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.types import Loader, convert_value, shown_value

GIB = 2**30
YAML = (".yaml", ".yml")
SLIGHTEST, GREATEST = 1e-6, 1e9  # of any figure


def gib(size: float) -> str:
    """Bytes in GiB, for a table."""
    return f"{size / GIB:,.2f}"


@dataclass(frozen=True)
class Machine:
    """A GPU with its node and network.

    Attributes:
        peak_tflops: dense (not sparse) 16-bit TFLOP/s of the data sheet: what MFU is measured against.
        matmul_tflops: the most that a large bf16 matmul reaches.
        memory_gib: what a process sees of the GPU's memory.
        copy_tbs: TB/s that a copy of device memory reaches, reads and writes counted.
        gpus_per_node: GPUs that reach one another by NVLink, xGMI or an NVLink switch.
        nvlink_gbs: GB/s one way, of one GPU, within the node.
        network_gbs: GB/s one way, of one GPU, between nodes.
        nvlink_us, network_us: latency of a message or of a collective's step.
        link_share: part of a link's rate that collectives and messages reach.
        attention_share: part of matmul_tflops that fused attention reaches, forward and backward.
        kernel_us: the shortest time of a kernel.
        context_gib: what a process holds before its first tensor: CUDA context, cuBLAS workspaces, kernels' code.
        communicator_gib: NCCL's buffers, for every group of several ranks.
    """

    name: str
    peak_tflops: float
    matmul_tflops: float
    memory_gib: float
    copy_tbs: float
    gpus_per_node: int
    nvlink_gbs: float
    network_gbs: float
    nvlink_us: float = 10.0  # assumed: NCCL's latency of a small collective within a node, with its launch
    network_us: float = 25.0  # assumed: the same across nodes
    link_share: float = 0.8  # DeepEP v1, H800: 153-158 of 200 GB/s by NVLink, 43 of 50 GB/s by RDMA
    attention_share: float = 0.75  # FlashAttention-3, H100, causal, head 128, 4k-8k: 550-620 TFLOP/s forward
    kernel_us: float = 4.0  # assumed
    context_gib: float = 0.8  # assumed
    communicator_gib: float = 0.4  # measured: 402 MiB, NCCL 2.31.2, two ranks on an H100 (docs/gpu-h100.md)

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.memory_gib * GIB


# matmul_tflops: Maximum Achievable Matmul FLOPS table of stas00/ml-engineering (bf16, best of many shapes), unless
# said otherwise. peak_tflops, nvlink_gbs (half of the advertised two-way rate) and network_gbs (one 200, 400 or 800
# Gbit/s adapter a GPU): data sheets and the vendors' reference servers. copy_tbs: about 0.9 of the data sheet's rate,
# as measured on an H100 (3.0 of 3.35); assumed for the others.
MACHINES: dict[str, Machine] = {
    "a100": Machine("a100", 312, 271, 79.1, 1.8, 8, 300, 25),  # SXM 80 GB, HDR InfiniBand
    "h100": Machine("h100", 989, 794, 79.1, 3.0, 8, 450, 50),  # SXM 80 GB, NDR InfiniBand
    "h200": Machine("h200", 989, 828, 139.8, 4.3, 8, 450, 50),  # matmul: GH200's; NDR InfiniBand
    "b200": Machine("b200", 2250, 1745, 178.0, 7.1, 8, 900, 50),  # DGX B200: 400 Gbit/s a GPU
    # 72 GPUs on one NVLink switch; peak: data sheet of GB200 NVL72 (2,500 dense); matmul: B200's share of its peak
    "gb200": Machine("gb200", 2500, 1940, 184.0, 7.1, 72, 900, 50),
    # xGMI: 7 links of 64 GB/s to seven neighbours; RoCE. MAMF of 2024 (ROCm 6.2): 782
    "mi300x": Machine("mi300x", 1307, 782, 191.5, 4.6, 8, 448, 50, attention_share=0.6),
}

# Part of matmul_tflops that a matmul reaches, by the smallest of its three sizes (of one group, where grouped).
# Assumed, from the shape of published sweeps over sizes (a 1024-cube reaches about half of the best shape), not
# measured here; `--gpu FILE` with another matmul_tflops moves all of it.
MATMUL_BY_SIZE = ((64, 0.15), (128, 0.3), (256, 0.5), (512, 0.68), (1024, 0.8), (2048, 0.88), (4096, 0.93))


def matmul_share(smallest: float) -> float:
    """MATMUL_BY_SIZE between its points, in the logarithm of the size."""
    table = MATMUL_BY_SIZE
    if smallest <= table[0][0]:
        return table[0][1] * smallest / table[0][0]
    for (low, a), (high, b) in pairwise(table):
        if smallest <= high:
            return a + (b - a) * math.log(smallest / low) / math.log(high / low)
    return table[-1][1]


def of_device(name: str) -> Machine | None:
    """The machine whose GPU a driver calls so ("NVIDIA GB200"), where it is known."""
    named = [known for known in MACHINES if known in name.lower()]
    return MACHINES[max(named, key=len)] if named else None  # b200 is in gb200 too


def find_machine(name: str, below: tuple[Path, ...] = ()) -> Machine:
    """A machine by its name, or one described in a YAML file.

    Raises:
        ConfigError: unknown, with the nearest that is known; or a file that is none.
    """
    if name.endswith(YAML):
        return load_machine(Path(name), below)
    found = MACHINES.get(name.lower().replace("-", "").replace("_", ""))
    if found is None:
        near = difflib.get_close_matches(name.lower(), MACHINES, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(MACHINES)}."
        raise ConfigError(f"--gpu {name}: unknown; {hint} Your own goes into a YAML file: --gpu FILE.yaml")
    return found


def load_machine(path: Path, below: tuple[Path, ...] = ()) -> Machine:
    """A machine as a YAML file describes it: Machine's fields; `extends: NAME` starts from a known one.

    Args:
        below: files that extend this one.

    Raises:
        ConfigError: the file, a key or a value cannot be used.
    """
    if path.resolve() in below:
        raise ConfigError(f"--gpu {path}: extends itself; break the circle")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise ConfigError(f"--gpu {path}: {error.strerror}; give a YAML file or a name") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"--gpu {path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"--gpu {path}: expected keys and values such as peak_tflops: 989")
    types = {field.name: {"str": str, "int": int}.get(str(field.type), float) for field in fields(Machine)}
    values: dict[str, float | str] = {}
    for key_node, node in root.value:
        where = f"{path}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{where}: {shown_value(key_node)} is not a key; write key: value")
        key = key_node.value
        if key != "extends" and key not in types:
            near = difflib.get_close_matches(key, types, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(types)}"
            raise ConfigError(f"{where}: {key} is not a figure of a machine; {hint}")
        if key in values:
            raise ConfigError(f"{where}: {key} is given twice; keep one")
        try:
            values[key] = convert_value(node, types.get(key, str))
        except ConfigError as error:
            raise ConfigError(f"{where}: {key} = {shown_value(node)} {error}") from None
    base = values.pop("extends", None)
    if base and str(base).endswith(YAML):
        base = str(path.parent / str(base))  # as configurations have it
    known = asdict(find_machine(str(base), (*below, path.resolve()))) if base else {"name": path.stem}
    needed = [name for name in _REQUIRED if name not in {**known, **values}]
    if needed:
        raise ConfigError(f"{path}: lacks {', '.join(needed)}; give them, or extends: h100")
    if base and "name" not in values:
        values["name"] = path.stem
    return check_machine(Machine(**{**known, **values}), str(path))


ALLOWANCES = ("context_gib", "communicator_gib")
_REQUIRED = tuple(f.name for f in fields(Machine))[1:8]


def check_machine(described: Machine, where: str) -> Machine:
    """The machine itself; ConfigError where it cannot exist."""
    for name, value in asdict(described).items():
        if name == "name":
            continue
        if value == 0 and name in ALLOWANCES:
            continue
        if not value > 0:
            raise ConfigError(f"{where}: {name} = {value:g}: a machine's figures are more than 0")
        if not SLIGHTEST <= value <= GREATEST:
            raise ConfigError(
                f"{where}: {name} = {value:g}: no machine's, which are from {SLIGHTEST:g} to {GREATEST:g}"
            )
        if name.endswith("_share") and value > 1:
            raise ConfigError(f"{where}: {name} = {value:g} is a part of the whole: at most 1")
    if described.matmul_tflops > described.peak_tflops:
        raise ConfigError(
            f"{where}: matmul_tflops = {described.matmul_tflops:g} is more than peak_tflops = "
            f"{described.peak_tflops:g}; the peak is that of dense 16-bit matmuls"
        )
    return described
