"""What the rank of test_step_memory.py does: runs a forward and adds up what autograd holds of it."""

from __future__ import annotations

from collections import Counter

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from hcmegatron.config.schema import Config
from hcmegatron.model.gpt import unwrap
from hcmegatron.platform.distributed import megatron_groups, seed_regions
from hcmegatron.training.model import build_model
from tests.as_on_a_gpu import no_padding
from tests.layouts.network import Batches


def held(configs: list[Config]) -> list[tuple[int, Counter]]:
    """Of every model: bytes of distinct storages that the graph of one micro-batch holds, parameters not counted, and
    the same by shape and type. As on a GPU: without a CPU's rows of zeros between experts' tokens."""
    found = []
    with megatron_groups(configs[0]) as groups, no_padding():
        for config in configs:
            seed_regions(config)
            (chunk,) = (unwrap(c) for c in build_model(config, 257, groups))
            own = {p.untyped_storage().data_ptr() for p in chunk.parameters()}
            saved: list[Tensor] = []

            def keep(tensor: Tensor, saved: list[Tensor] = saved) -> Tensor:
                saved.append(tensor)
                return tensor

            batch = Batches(config, 0, 1)(0, 0)
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = chunk(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
            storages = {t.untyped_storage().data_ptr(): t for t in saved}
            distinct = [t for pointer, t in storages.items() if pointer not in own]
            shapes: Counter = Counter()
            for tensor in distinct:
                shapes[tuple(tensor.shape), str(tensor.dtype)] += tensor.untyped_storage().nbytes()
            found.append((sum(shapes.values()), shapes))
            del loss
    return found
