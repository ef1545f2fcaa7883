"""The quickstart's training step under every kind of connection, over its step under the plain residual.

    python -m tools.bench_kinds [--rounds 15] [--kinds mhc dhc] [--kernels torch auto native] [--hidden 512]
        [--dtype bf16] [--eager]

One process, one thread, the whole model on one pipeline rank. A step is its micro-batches, forward and backward, and
the optimizer; they are timed apart, so that between two micro-batches of a kind there is one of the residual, to which
it is compared: the median of the ratios, and in brackets the middle half of them. --kernels runs every kind under each
of them, --hidden makes the model another width, --eager adds mHC as autograd runs its formulas, without kernels. Beside
each kind's ratio are two that it cannot be below: where its FLOPs ran at the rate of the residual's, and where nothing
of it took time but the fewest bytes that streams have to be moved, at the speed of a copy that this thread has
measured.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import cycle
from typing import Any, NamedTuple

import torch

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config.load import load_config
from hcmegatron.config.schema import Config
from hcmegatron.connections.kinds import KINDS as kinds
from hcmegatron.connections.manifold import Manifold
from hcmegatron.connections.mixing import aggregate, mix_and_add
from hcmegatron.data.corpus import find_corpus
from hcmegatron.data.dataset import Batches
from hcmegatron.data.text import Text
from hcmegatron.data.tokenizer_registry import build_tokenizer
from hcmegatron.model.transformer_config import DTYPES
from hcmegatron.planner.flops import training_flops_per_token
from hcmegatron.planner.operations import connection_traffic
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.local_launch import free_port
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training.model import build_model
from hcmegatron.training.optimizer import build_optimizer
from tools.alternate import alternating, beside
from tools.machine import Others, described
from tools.targets import Targets, exit_status

KINDS = tuple(kinds)
# Of the residual's step.
MOST = {"mhc": 1.35, "dhc": 1.3, "shc": 1.12, "sfc": 1.12, "dfc": 1.12, "ihc": 1.2, "gr": 1.35}


class Eager(Manifold):
    """mHC by its formulas, differentiated by autograd."""

    def read(self, H: Any, projection: Any = None) -> Any:
        """As Manifold's."""
        coefficients = self.coefficients(H)
        return aggregate(H, coefficients[0]), coefficients

    def write(self, H: Any, y: Any, coefficients: Any, bias: Any = None, dropout: float = 0.0) -> Any:
        """As Manifold's, without dropout."""
        y = y if bias is None else y + bias
        return mix_and_add(H, y.unsqueeze(-2), *coefficients[1:])


def settings(hidden: int | None, dtype: str) -> list[str]:
    """Overrides of the quickstart that all kinds share."""
    widths = {"model.hidden_size": 1, "model.ffn_hidden_size": 3, "moe.ffn_hidden_size": 3 / 4}
    wider = [f"--{key}={int(hidden * by)}" for key, by in widths.items()] if hidden else []
    shared = ["--parallel.pipeline=1", "--parallel.schedule=megatron_1f1b", "--training.threads=1"]
    return [*shared, f"--training.dtype={dtype}", *wider]


class Floors(NamedTuple):
    """Ratios to the residual's step below which a kind's cannot be."""

    flops: float
    bytes: float


def floors(own: Config, plain: Config, vocab_size: int, residual: float, bandwidth: float) -> Floors:
    """plain: the residual's configuration; residual: seconds of its step; bandwidth: bytes a second of a copy, read and
    written."""
    flops = training_flops_per_token(own, vocab_size) / training_flops_per_token(plain, vocab_size)
    moved = sum(connection_traffic(own)) - sum(
        connection_traffic(plain)
    )  # elements of C a token and connection
    tokens = own.training.global_batch * own.data.sequence_length
    streams = moved * own.model.hidden_size * DTYPES[own.training.dtype].itemsize
    return Floors(flops, 1 + streams * 2 * own.model.layers * tokens / bandwidth / residual)


def copy_speed(size: int = 1 << 26) -> float:
    """Bytes a second, read and written, of copies too large for the caches."""
    source, target = (torch.ones(size, dtype=torch.uint8) for _ in range(2))
    times = alternating({"copy": lambda: target.copy_(source)}, 9, warmup=2)["copy"]
    return 2 * size / statistics.median(times)


class Step:
    """Of one model."""

    def __init__(self, overrides: list[str], groups: Any, text: Text, eager: bool) -> None:
        config = load_config("configs/quickstart.yaml", overrides)
        batches = Batches(text, config.data, config.training)
        self._chunks = build_model(config, text.tokenizer.vocab_size, groups)
        (self._chunk,) = self._chunks
        if eager:
            for module in self._chunk.modules():
                if isinstance(module, Manifold):
                    module.__class__ = Eager
        self._optimizer = build_optimizer(config, self._chunks, groups)
        self.micro_batches = batches.micro_batches
        self._next = cycle([batches(0, index) for index in range(self.micro_batches)])

    def micro_batch(self) -> None:
        """Forward and backward of the next one."""
        batch = next(self._next)
        output = self._chunk(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
        output.sum().backward()

    def update(self) -> None:
        """Of the weights, by the gradients that have gathered."""
        self._chunk.scale_gradients(1e-6)
        self._optimizer.step()
        self._chunk.zero_grad_buffer()


class Compared(NamedTuple):
    """A kind's step: seconds, and its ratios to the residual's, one a round."""

    seconds: float
    ratios: list[float]


def compare(residual: Step, steps: dict[str, Step], rounds: int) -> tuple[float, dict[str, Compared]]:
    """Seconds of the residual's step, and the others'."""
    plain, found = beside(
        residual.micro_batch, {name: step.micro_batch for name, step in steps.items()}, rounds, warmup=2
    )
    updates = alternating({"": residual.update} | {name: step.update for name, step in steps.items()}, 5)
    count, update = residual.micro_batches, {name: statistics.median(own) for name, own in updates.items()}
    micro_batch = statistics.median(plain)
    whole = count * micro_batch + update[""]
    return whole, {
        name: Compared(
            count * statistics.median(own.seconds) + update[name],
            [(count * micro_batch * ratio + update[name]) / whole for ratio in own.ratios],
        )
        for name, own in found.items()
    }


def main() -> int:
    """Prints medians and every kind's ratio to the residual; returns 1 where one missed its target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--kinds", nargs="+", choices=KINDS[1:], default=KINDS[1:])
    parser.add_argument("--kernels", nargs="+", choices=("auto", "torch", "native"), default=("auto",))
    parser.add_argument(
        "--hidden", type=int, help="hidden size, with MLPs in proportion (default: the quickstart's)"
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    others = Others()
    print(described())
    shared = settings(args.hidden, args.dtype)
    config = load_config("configs/quickstart.yaml", shared)
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "bench")
    with process_groups(config, alone) as groups:
        text = Text(find_corpus(config.data), build_tokenizer(config.data.tokenizer))
        names = {
            kind if kernels == "auto" else f"{kind}, {kernels}": (kind, kernels, False)
            for kind in args.kinds
            for kernels in args.kernels
        }
        if args.eager:
            names["mhc, eager"] = ("mhc", "auto", True)

        def built(kind: str, kernels: str, eager: bool) -> Step:
            return Step([*shared, f"--connection.kind={kind}", f"--kernels={kernels}"], groups, text, eager)

        steps = {name: built(*what) for name, what in names.items()}
        residual, found = compare(built("residual", "auto", False), steps, args.rounds)
        bandwidth = copy_speed()
    print(f"a copy: {bandwidth / 1e9:.1f} GB/s, read and written")
    print(f"{'residual':>16}: {1e3 * residual:7.1f} ms a step")
    targets = Targets()
    plain = load_config("configs/quickstart.yaml", [*shared, "--connection.kind=residual"])
    for name, (seconds, ratios) in found.items():
        over, (kind, _, eager) = statistics.median(ratios), names[name]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        own = load_config("configs/quickstart.yaml", [*shared, f"--connection.kind={kind}"])
        least = floors(own, plain, text.tokenizer.vocab_size, residual, bandwidth)
        target = f", target {targets.at_most(name, over, MOST[kind])}" if kind in MOST and not eager else ""
        print(
            f"{name:>16}: {1e3 * seconds:7.1f} ms a step, {over:.3f} of residual ({low:.3f} to {high:.3f}; "
            f"at least {least.flops:.3f} by FLOPs, {least.bytes:.3f} by bytes{target})"
        )
    return others.verdict(lambda: exit_status(targets.missed))


if __name__ == "__main__":
    raise SystemExit(main())
