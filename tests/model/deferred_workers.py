"""What the ranks of test_separate_wgrad.py do: micro-batches with weight gradients at once, or left for later."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hcmegatron.model import separate_wgrad
from hcmegatron.model.gpt import unwrap
from hcmegatron.model.separate_wgrad import separate_weight_gradients
from hcmegatron.platform.distributed import megatron_groups
from hcmegatron.training.model import wrap_chunk
from tests.as_on_a_gpu import no_padding
from tests.layouts.network import Batches, chunks_of
from tests.small_configs import small


class Matmuls(TorchDispatchMode):
    """Counts matrix products by the shape of what they put out."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(name in func.__name__ for name in ("mm", "matmul")):
            self.shapes.append(tuple(out.shape))
        return out


def backward(chunk, batch) -> None:
    losses = chunk(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    (losses.float() * batch["loss_mask"]).sum().backward()


def gradients(chunk) -> dict[str, torch.Tensor]:
    return {name: p.main_grad.clone() for name, p in unwrap(chunk).named_parameters()}


def compare(
    architecture: str, parallel: dict, dtype: str, tied: bool, grouped: bool, padded: bool = False
) -> dict:
    """Gradients usual and deferred, and the matmuls of I and W. The usual ones are Megatron's own.

    Tokens are so few that no activation has a weight's shape: at most 8 tokens on a tensor-parallel rank,
    where weights have 9 rows and more, and 16 on an expert-parallel one, where they have 18 and more. So there are no
    rows of zeros between experts' tokens either, but where they are ``padded``.
    """
    config = small(architecture, "shc", **parallel)
    config.training.dtype, config.model.tie_embeddings = dtype, tied
    config.moe.grouped, config.data.sequence_length = grouped, 4
    if architecture == "moe":
        config.moe.experts, config.mla.kv_rank = 18, 14
    # A tied embedding's two gradients are added one by one, which is exact for one micro-batch only.
    count = 1 if tied else 3

    with megatron_groups(config) as groups, nullcontext() if padded else no_padding():
        batches = Batches(config, groups.dp.rank(), groups.dp.size())

        def twice(separate: bool, order: list[str]) -> tuple:
            """The second step's gradients: overlapped reduction learns in the first when they come."""
            (model,) = chunks_of(config, groups)
            chunk = wrap_chunk(model, config, groups)
            store = separate_weight_gradients(model) if separate else None
            during = {"B": Matmuls(), "I": Matmuls(), "W": Matmuls()}
            held = []
            for _ in range(2):
                chunk.zero_grad_buffer()
                for kind, i in order:
                    last = nullcontext() if int(i) == count - 1 else chunk.no_sync()
                    with last, during[kind]:
                        if kind == "W":
                            held.append((len(store), store.bytes()))
                            store.pop_and_run()
                        else:
                            with store.deferring() if kind == "I" else nullcontext():
                                backward(chunk, batches(0, int(i)))
                chunk.finish_grad_sync()
            assert not separate or (len(store), store.bytes()) == (0, 0)
            return gradients(chunk), model, during, held

        at_once = [f"B{i}" for i in range(count)]
        usual, *_ = twice(False, at_once)
        whole, *_ = twice(True, at_once)
        later = ["I0", "W0"] if tied else ["I0", "I1", "W0", "I2", "W1", "W2"]
        left, model, during, held = twice(True, later)
    separable = [p for p in model.parameters() if getattr(p, "separable", False)]
    weights = {tuple(p.shape) for p in separable}
    return {
        "usual": usual,
        "whole": whole,
        "deferred": left,
        "weight_matmuls_in_I": [shape for shape in during["I"].shapes if shape in weights],
        "weight_matmuls_in_W": sum(shape in weights for shape in during["W"].shapes),
        "other_matmuls_in_W": [shape for shape in during["W"].shapes if shape not in weights],
        "separable": len(separable),
        "held": held,
    }


def exact() -> dict[str, dict[str, float]]:
    """In bf16, the relative error of every linear's summed gradient, at once and left for later, against the sum of the
    same products in 64 bits."""
    config = small("dense", "shc")
    config.training.dtype = "bf16"
    found: dict[str, dict[str, float]] = {}
    usual = separate_wgrad.add_product
    with megatron_groups(config) as groups:
        batches = Batches(config, 0, 1)
        for how, order in (("whole", "B0 B1 B2"), ("deferred", "I0 I1 W0 I2 W1 W2")):
            sums: dict[int, torch.Tensor] = {}

            def noted(into, left, right, sums=sums):
                product = left.double() @ right.double()
                sums[into.data_ptr()] = sums.get(into.data_ptr(), 0) + product
                usual(into, left, right)

            (model,) = chunks_of(config, groups)
            chunk = wrap_chunk(model, config, groups)
            store = separate_weight_gradients(model)
            chunk.zero_grad_buffer()
            separate_wgrad.add_product = noted
            for kind, i in order.split():
                if kind == "W":
                    store.pop_and_run()
                    continue
                with store.deferring() if kind == "I" else nullcontext():
                    backward(chunk, batches(0, int(i)))
            separate_wgrad.add_product = usual
            found[how] = {
                name: float(
                    (p.main_grad.double() - sums[p.main_grad.data_ptr()]).abs().max()
                    / sums[p.main_grad.data_ptr()].abs().max()
                )
                for name, p in model.named_parameters()
                if p.main_grad.data_ptr() in sums
            }
    return found
