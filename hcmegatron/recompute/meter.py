"""What the autograd graphs of live micro-batches really hold: unique storages, attributed to connections and norms
or to the rest.

The hooks through which autograd saves tensors pack them into objects that live exactly as long as the graph holds
them. A meter knows those objects weakly, so summing over it is a walk of the graphs without their graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Literal, Protocol
from weakref import WeakSet

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from hcmegatron.model.nodes import ActivationPolicy, State, SubLayer

Scope = Literal["around", "inside"]  # connections, norms and sub-layers' outputs; attention, MLP and experts


class Holder(Protocol):
    """Something that lives as long as the graph, and keeps tensors alive."""

    scope: Scope

    def tensors(self) -> Iterable[Tensor]:
        """What it keeps alive now."""


class Meter:
    """Bytes of one scope at any time, and the most since it was made.

    Args:
        modules: whose parameters are not counted; graphs hold them too.

    Attributes:
        kept: most bytes around the sub-layers before a block was rebuilt.
        peak: most bytes around them with a block rebuilt.
        everything: most bytes of both scopes.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._holders: WeakSet[Holder] = WeakSet()
        self._followed: list[tuple[StorageWeakRef, int, int]] = []
        self._modules = modules
        self.kept = self.peak = self.everything = 0

    def add(self, holder: Holder) -> None:
        """From now on, until the graph drops it."""
        self._holders.add(holder)

    def hold(self, tensor: Tensor, scope: Scope) -> SavedTensor:
        """A holder of the tensor, for autograd to keep."""
        held = SavedTensor(tensor, scope)
        self.add(held)
        return held

    def bytes(self, scope: Scope = "around") -> int:
        """Unique storages of the scope. What both hold, as a norm's output is held by the linear behind it, counts
        as around."""
        parameters = {
            parameter.untyped_storage().data_ptr()
            for module in self._modules
            for parameter in module.parameters()
        }
        self._followed = [followed for followed in self._followed if not followed[0].expired()]
        sizes: dict[Scope, dict[int, int]] = {
            "around": {storage: size for _, storage, size in self._followed},
            "inside": {},
        }
        for holder in list(self._holders):
            for tensor in holder.tensors():
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in parameters:
                    sizes[holder.scope][storage.data_ptr()] = storage.nbytes()
        if scope == "inside":
            return sum(size for storage, size in sizes["inside"].items() if storage not in sizes["around"])
        return sum(sizes["around"].values())

    def follow(self, tensor: Tensor) -> None:
        """Count this tensor as around for as long as anything holds its storage, as a deferred weight gradient does."""
        storage = tensor.untyped_storage()
        self._followed.append((StorageWeakRef(storage), storage.data_ptr(), storage.nbytes()))

    def rebuilding(self) -> None:
        """A block is about to be rebuilt."""
        self.kept = max(self.kept, self.sample())

    def rebuilt(self) -> None:
        """A block has been rebuilt."""
        self.peak = max(self.peak, self.sample())

    def sample(self) -> int:
        """Bytes around the sub-layers now; notes those of both scopes."""
        around = self.bytes("around")
        self.everything = max(self.everything, around + self.bytes("inside"))
        return around


class SavedTensor:
    """A saved tensor, as it is."""

    def __init__(self, value: Tensor, scope: Scope) -> None:
        self.value, self.scope = value, scope

    def tensor(self) -> Tensor:
        """What autograd gets back."""
        return self.value

    def tensors(self) -> Iterator[Tensor]:
        """What a meter counts."""
        yield self.value


class MeteredPolicy(ActivationPolicy):
    """Keeps all that autograd asks for, and tells the meter which part of it surrounds the sub-layers."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.input = 0  # storage of the current sub-layer's input

    def node(self) -> AbstractContextManager:
        return self._hooks("inside")

    def read(
        self, sublayer: SubLayer, streams: Tensor, *projection: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        with self._hooks("around"):
            x, coefficients = sublayer.read(streams, *projection)
        self.input = x.untyped_storage().data_ptr()
        return x, coefficients

    def write(
        self,
        sublayer: SubLayer,
        streams: Tensor,
        y: Tensor,
        coefficients: tuple[Tensor, ...],
        bias: Tensor | None = None,
        first_sample: int | None = None,
    ) -> State:
        with self._hooks("around"):
            return sublayer.write(streams, y, coefficients, bias, first_sample)

    def _hooks(self, scope: Scope) -> AbstractContextManager:
        def pack(tensor: Tensor) -> SavedTensor:
            is_input = tensor.untyped_storage().data_ptr() == self.input
            return self.meter.hold(tensor, "around" if is_input else scope)

        return saved_tensors_hooks(pack, SavedTensor.tensor)
