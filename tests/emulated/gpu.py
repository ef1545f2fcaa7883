"""A whole GPU on a CPU: what the project asks of one is answered by emulated streams, communicators and memory.

The program under test is the one that runs on a GPU. Import it in ranks only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from megatron.core.transformer.moe import token_dispatcher
from schedules.runtime.gpu import GPU
from tests.emulated import communicators, host, streams
from tests.emulated.streams import DEVICE

CUDA = torch.device("cuda", 0)


def install() -> None:
    """From now on this process has a GPU."""
    from hcmegatron.pipeline import runner
    from hcmegatron.pipeline.lanes import Lanes

    streams.install()
    runner.Lanes = Lanes  # which sees the GPU by itself
    communicators.register()
    host.install()
    # Megatron and torch themselves see no GPU: there are no kernels for one.
    torch.cuda.is_available = lambda: False
    torch.cuda.device_count, torch.cuda.current_device = lambda: 8, lambda: CUDA
    for name in ("new_empty", "new_zeros", "new_ones", "new_full"):
        setattr(Tensor, name, _beside(getattr(Tensor, name)))
    _install_dispatcher()
    torch.Generator = _generator
    GPU.present = lambda: True
    GPU.device = lambda: CUDA
    GPU.holds = lambda tensor: not host.HOST.has(tensor)
    GPU.backend = communicators.NAME


def _beside(usual: Callable) -> Callable:
    """A tensor's own factory, which the CPU adapter leaves as it is: where the tensor is, whatever CUDA device."""

    def made(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
        if kwargs.get("device") == CUDA:
            del kwargs["device"]
        return usual(tensor, *args, **kwargs)

    return made


def _install_dispatcher() -> None:
    """Megatron's keeps the order of its chunks on the host, and asks what it moves there where it is."""
    dispatcher = token_dispatcher.MoEAlltoAllTokenDispatcher
    usual = dispatcher.__init__

    def init(self: object, *args: object, **kwargs: object) -> None:
        usual(self, *args, **kwargs)
        for order in (self.sort_input_by_local_experts, self.restore_output_by_local_experts):
            host.HOST.add(order)

    dispatcher.__init__ = init
    token_dispatcher.maybe_move_tensor_to_cpu = _to_host


def _to_host(tensor: Tensor, as_numpy: bool = False, record_stream: bool = False) -> object:
    """As Megatron's, which asks where the tensor is."""
    if not torch.is_tensor(tensor) or host.HOST.has(tensor):
        return tensor
    copy = tensor.to(torch.device("cpu"), non_blocking=True)
    if record_stream:
        tensor.record_stream(DEVICE.current[-1])
    return copy.numpy() if as_numpy else copy


_usual = torch.Generator


def _generator(device: object = "cpu") -> torch.Generator:
    return _usual("cpu")
