"""What an observation keeps of a forward: numbers per token, of the sub-layers and micro-batches that this rank has.

Letters: S sub-layers of the whole network, T observed tokens, s sequence, b micro-batch size, w the streams' width in
units of C, C hidden size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.diagnostics.columns import Columns
from hcmegatron.diagnostics.sample import Sample, Slice, tokens_in
from hcmegatron.diagnostics.similarity import cosine, stream_similarity
from hcmegatron.model.gpt import unwrap
from hcmegatron.planner.scheduled import placement
from hcmegatron.planner.stages import stages
from megatron.core.process_groups_config import ProcessGroupCollection

SATURATED = 0.98  # of |tanh|: its slope is below 4% of the largest


class Recording:
    """Tensors of the whole network and all observed tokens, in fp64: what this rank sees is filled in, the rest is 0.

    Args:
        count: micro-batches of every data-parallel rank that are observed; further ones only fill up the schedule.

    Attributes:
        record: [S + 1, T, columns.width]; row S has the streams after the last sub-layer.
        layer_similarity: [S - 1, T], cosines of the inputs x of neighbouring sub-layers.
        expert_counts: [layers, experts], of the observed tokens, how many each expert was given.
        activates: whether anything of the connections' coefficients saturates.
    """

    def __init__(
        self,
        config: Config,
        groups: ProcessGroupCollection,
        sample: Sample,
        count: int,
        device: torch.device,
    ) -> None:
        self.config, self.groups, self.sample, self.count = config, groups, sample, count
        self.columns, self.kind = Columns.of(config.connection), accounting.kind_of(config.connection)
        S, T, C = 2 * config.model.layers, sample.tokens, config.model.hidden_size
        like = {"dtype": torch.float64, "device": device}
        self.record = torch.zeros(S + 1, T, self.columns.width, **like)
        self.layer_similarity = torch.zeros(S - 1, T, **like)
        self.expert_counts = torch.zeros(config.model.layers, config.moe.experts, **like)
        self.activates = False
        # Neighbours in different chunks: the last x of every chunk goes to whoever has the first one of the next.
        chunks = stages(config.model.layers, placement(config.parallel).model_stages)
        self._begins = {2 * stage.layers.start: index for index, stage in enumerate(chunks)}
        self._ends = {2 * stage.layers.stop - 1: index for index, stage in enumerate(chunks[:-1])}
        self._last_x = torch.zeros(len(self._ends), T, C, **like)
        self._first_x: dict[int, Tensor] = {}
        self._places: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}

    @contextmanager
    def listening(self, chunks: Sequence[nn.Module], firsts: Sequence[int]) -> Iterator[None]:
        """Within it, forwards of the chunks are recorded, micro-batch after micro-batch of each.

        Args:
            chunks: this rank's, wrapped or not.
            firsts: the first micro-batch that each of them sees.
        """
        with ExitStack() as hooks:
            for chunk, first in zip(chunks, firsts, strict=True):
                decoder, heard = unwrap(chunk).decoder, _Chunk(self, first)
                for layer in decoder.layers:
                    for place, around in enumerate(layer.sublayers):
                        hook = heard.read(2 * (layer.layer_number - 1) + place)
                        hooks.callback(around.connection.register_forward_hook(hook).remove)
                    if layer.is_moe:
                        hook = heard.routed(layer.layer_number - 1)
                        hooks.callback(layer.mlp.router.register_forward_hook(hook).remove)
                if decoder.post_process:
                    hooks.callback(decoder.contract.register_forward_pre_hook(heard.end()).remove)
            yield

    def place(self, micro_batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of a micro-batch whose sequences are `length` long on this rank: (position, row, number among the T) of the
        observed tokens that this rank tells of. Tensor-parallel ranks that see the same ones leave them to the first.
        """
        key = micro_batch, length
        if key not in self._places:
            self._places[key] = self._place(micro_batch, length)
        return self._places[key]

    def _place(self, micro_batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        tp, dp, b = self.groups.tp, self.groups.dp, self.config.training.micro_batch
        apart = length < self.config.data.sequence_length  # sequence parallelism
        found: list[tuple[int, int, int]] = []
        if micro_batch < self.count and (apart or tp.rank() == 0):
            first = (micro_batch * dp.size() + dp.rank()) * b
            found = tokens_in(self.sample, Slice(first, b, tp.rank() * length if apart else 0, length))
        indices = torch.tensor(found, dtype=torch.long, device=self.record.device).reshape(-1, 3)
        return indices[:, 0], indices[:, 1], indices[:, 2]

    def add(
        self,
        sublayer: int,
        tokens: Tensor,
        H: Tensor,
        coefficients: dict[str, Tensor],
        activations: dict[str, Tensor],
    ) -> None:
        """Of these tokens, the streams H [t, w, C] that a sub-layer has read, and what it has read them with."""
        t = len(tokens)
        streams = H.double().flatten(1).unflatten(1, (self.columns.n, -1))
        values = {"norm": streams.norm(dim=-1), "similarity": stream_similarity(streams), **coefficients}
        if activations:
            self.activates = True
            size = torch.cat([value.abs().flatten(1) for value in activations.values()], -1)
            values |= {"saturated": (size > SATURATED).double().mean(-1), "activation": size.amax(-1)}
        self.record[sublayer, tokens] = self.columns.joined(t, values)

    def add_input(self, sublayer: int, tokens: Tensor, x: Tensor, before: Tensor | None) -> None:
        """x [t, C], which a sub-layer has read of these tokens, and the sub-layer before it in its chunk."""
        if before is not None:
            self.layer_similarity[sublayer - 1, tokens] = cosine(before, x)
        elif sublayer:
            first = self._first_x.setdefault(sublayer, torch.zeros_like(self._last_x[0]))
            first[tokens] = x
        if sublayer in self._ends:
            self._last_x[self._ends[sublayer], tokens] = x

    def combine(self) -> None:
        """Every rank's parts together, on rank 0 alone. Collective over all ranks."""
        if len(self._last_x):
            dist.all_reduce(self._last_x)
            for sublayer, x in self._first_x.items():
                self.layer_similarity[sublayer - 1] += cosine(self._last_x[self._begins[sublayer] - 1], x)
        for part in (self.record, self.layer_similarity, self.expert_counts):
            if part.numel():
                dist.reduce(part, 0)


class _Chunk:
    """The hooks of one chunk, which count its micro-batches."""

    def __init__(self, recording: Recording, first: int) -> None:
        self.recording, self.first = recording, first
        self.seen: Counter[str] = Counter()
        self.x: Tensor | None = None  # of the sub-layer before, in this micro-batch

    def micro_batch(self, place: str) -> int:
        """The number of the one that is at `place` now."""
        self.seen[place] += 1
        return self.first + self.seen[place] - 1

    def read(self, sublayer: int) -> Callable[[nn.Module, Any, Any], None]:
        """After a connection's read."""
        recording = self.recording

        def hook(own: nn.Module, inputs: tuple[Tensor], outputs: tuple[Tensor, tuple[Tensor, ...]]) -> None:
            (H,), (x, read) = inputs, outputs
            positions, rows, tokens = recording.place(self.micro_batch(f"read {sublayer}"), len(H))
            found = recording.columns.coefficients(read, positions, rows)
            activations = recording.kind.activations(recording.config.connection, own, **found)
            if own.single_pass and sublayer == 0:
                activations.pop("pre", None)  # which is given there, and predicted by nobody
            recording.add(sublayer, tokens, H[positions, rows], found, activations)
            x = x[positions, rows].double()
            before = None if sublayer in recording._begins else self.x
            recording.add_input(sublayer, tokens, x, before)
            self.x = x

        return hook

    def end(self) -> Callable[[nn.Module, Any], None]:
        """Before the contraction."""

        def hook(contract: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            H, *mix = inputs  # the pre of a single-pass connection, with which it contracts
            positions, rows, tokens = self.recording.place(self.micro_batch("end"), len(H))
            found = {"pre": mix[0][positions, rows].double()} if mix else {}
            self.recording.add(len(self.recording.record) - 1, tokens, H[positions, rows], found, {})

        return hook

    def routed(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        """After a router, which has flattened [s, b]."""

        def hook(router: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, Tensor]) -> None:
            s, b = inputs[0].shape[:2]
            positions, rows, _ = self.recording.place(self.micro_batch(f"routed {layer}"), s)
            chosen = outputs[1].reshape(s, b, -1)[positions, rows]
            self.recording.expert_counts[layer] += chosen.double().sum(0)

        return hook
