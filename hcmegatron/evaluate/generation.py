"""Texts that go on, token after token, over any layout.

Every rank runs its chunks forward by the schedule of an evaluation; who has the head looks at the logits behind each
text's last token and chooses; all ranks hear of it. There is no cache of keys and values: a token costs a forward over
the whole text, so n tokens cost some n forwards.

Texts are padded on the right, where causal attention does not look. b texts of a micro-batch, s tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hcmegatron.config.schema import Config
from hcmegatron.data.dataset import pack_rows
from hcmegatron.data.feed import Feed, MicroBatchTensors, unused_tensors
from hcmegatron.data.tokenizer import Tokenizer
from hcmegatron.evaluate.sampling import Sampling, choose
from hcmegatron.model.gpt import unwrap
from hcmegatron.pipeline.configured_schedule import evaluated_micro_batches, first_micro_batches
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.platform.distributed import device
from megatron.core.process_groups_config import ProcessGroupCollection

_ODD = -1  # in place of a token, where logits are not finite
ROUNDED_TO = 64  # tokens, so that texts of about a length run the same shapes


class NotFinite(ValueError):
    """A network's logits are not numbers; every rank raises it."""


@dataclass
class Continuation:
    """A text that goes on.

    Attributes:
        prompt: the tokens given.
        tokens: those that were chosen after them, without an end of document.
        ended: by an end of document, not by their number.
    """

    prompt: Sequence[int]
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    def text(self, tokenizer: Tokenizer) -> str:
        """What follows the prompt, as text."""
        given = tokenizer.decode(np.array(self.prompt))
        whole = tokenizer.decode(np.array([*self.prompt, *self.tokens]))
        # a prompt may end within a character, which the tokens that follow complete
        return whole[len(given) :] if whole.startswith(given) else tokenizer.decode(np.array(self.tokens))


class Network:
    """This rank's part of a network, asked for the logits behind texts. Every method is collective.

    Args:
        chunks: wrapped, in ascending order of their stages, and `schedule` what runs them (build_forward_backward).
        length: tokens that texts are padded to.
        micro_batch: texts of a micro-batch.
    """

    def __init__(
        self,
        config: Config,
        chunks: list[nn.Module],
        schedule: Callable,
        groups: ProcessGroupCollection,
        tokenizer: Tokenizer,
        length: int,
        micro_batch: int,
    ) -> None:
        self.config, self.chunks, self.schedule, self.groups = config, chunks, schedule, groups
        self.tokenizer, self.length, self.micro_batch = tokenizer, length, micro_batch

    def warm_start(self) -> None:
        """Use everything once, before messages are under way (pipeline/warm_start.py), where a schedule needs that."""
        if isinstance(self.schedule, ScheduleRunner):
            batch = self._batch([[self.tokenizer.end_of_document]], 1, 0)
            feeds = [self._feed(chunk, lambda _: batch, 0) for chunk in self.chunks]
            self.schedule.warm_start(
                forward_step_func=_forward_step,
                batches=[repeat(next(feed)) for feed in feeds],
                num_microbatches=1,
                seq_length=self.length,
                micro_batch_size=self.micro_batch,
                forward_only=True,
            )

    def logits(self, texts: Sequence[Sequence[int]]) -> dict[int, np.ndarray]:
        """Behind the last token of each text: [V] by the text's number, those that this rank has. Of tensor-parallel
        ranks the first has them.

        Data-parallel ranks share the texts out.
        """
        share = self.micro_batch * self.groups.dp.size()
        count = math.ceil(len(texts) / share)
        needed = evaluated_micro_batches(self.config.parallel, count)
        firsts = first_micro_batches(self.config.parallel, self.groups.pp.rank(), needed)
        make = partial(self._batch, texts, count)
        for chunk in self.chunks:
            chunk.eval()
        with torch.no_grad():
            found = self.schedule(
                forward_step_func=_forward_step,
                data_iterator=[
                    self._feed(chunk, make, first) for chunk, first in zip(self.chunks, firsts, strict=True)
                ],
                model=self.chunks,
                num_microbatches=needed,
                seq_length=self.length,
                micro_batch_size=self.micro_batch,
                forward_only=True,
            )
        behind = {number: row for of_batch in found for number, row in of_batch["behind"].items()}
        return self._of_all_parts(behind) if behind else {}

    def _of_all_parts(self, behind: dict[int, Tensor]) -> dict[int, np.ndarray]:
        """Logits [V / tensor-parallel ranks] of every rank put together on the first, without the padding."""
        own = torch.stack(list(behind.values()))
        parts = [torch.empty_like(own) for _ in range(self.groups.tp.size())]
        dist.all_gather(parts, own, group=self.groups.tp)
        if self.groups.tp.rank() > 0:
            return {}
        whole = torch.cat(parts, dim=1)[:, : self.tokenizer.vocab_size]
        return dict(zip(behind, whole.cpu().numpy(), strict=True))

    def _feed(self, chunk: nn.Module, make: Callable[[int], MicroBatchTensors], first: int) -> Feed:
        masked = self.config.model.document_mask
        return Feed(make, masked, first, unused_tensors(unwrap(chunk), masked))

    def _batch(self, texts: Sequence[Sequence[int]], count: int, index: int) -> dict[str, Any]:
        """Micro-batch `index` of this data-parallel rank: see data.dataset.pack_rows. `numbers` are those of the texts
        in it, and `lasts` where each ends; beyond the last of `count` micro-batches it is another's copy without any.
        """
        first = (index * self.groups.dp.size() + self.groups.dp.rank()) * self.micro_batch
        numbers = range(len(texts))[first : first + self.micro_batch] if index < count else range(0)
        rows = np.full((self.micro_batch, self.length + 1), self.tokenizer.end_of_document, np.int64)
        for row, number in zip(rows, numbers, strict=False):
            row[: len(texts[number])] = texts[number]
        lasts = [len(texts[number]) - 1 for number in numbers]
        return pack_rows(rows, self.tokenizer.end_of_document) | {"numbers": numbers, "lasts": lasts}


def generate(
    network: Network,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    sampling: Sampling,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Continuation] | None:
    """Each prompt, continued by up to so many tokens or to an end of document; the same on every rank. Collective.

    Args:
        prompts: each of a token or more; a prompt and all but the last of its `tokens` fit the network's length.
        stopped: asked before every token; None is returned when it says so.

    Raises:
        NotFinite: the network's logits are not.
    """
    texts = [Continuation(list(prompt)) for prompt in prompts]
    for position in range(tokens):
        going = [number for number, text in enumerate(texts) if not text.ended]
        if not going:
            break
        if stopped():
            return None
        for number, token in zip(going, _next(network, texts, going, sampling, position), strict=True):
            if token == _ODD:
                raise NotFinite(f"the logits behind token {position} of text {number} are not finite")
            if token == network.tokenizer.end_of_document:
                texts[number].ended = True
            else:
                texts[number].tokens.append(token)
    return texts


def padded(length: int, config: Config) -> int:
    """Tokens to pad texts of up to `length` to: never more than a sequence in training."""
    parts = config.parallel.tensor if config.parallel.sequence else 1
    multiple = math.lcm(ROUNDED_TO, parts)
    return min(-(-length // multiple) * multiple, config.data.sequence_length)


def _next(
    network: Network, texts: list[Continuation], going: list[int], sampling: Sampling, position: int
) -> list[int]:
    """The next token of the texts that are going on, on every rank."""
    chosen = torch.zeros(len(going), dtype=torch.int64, device=device())
    found = network.logits([[*texts[number].prompt, *texts[number].tokens] for number in going])
    for place, logits in found.items():
        finite = np.isfinite(logits).all()
        chosen[place] = choose(logits, sampling, going[place], position) if finite else _ODD
    dist.all_reduce(chosen)
    return chosen.tolist()


def _forward_step(
    batches: Iterator[MicroBatchTensors], chunk: nn.Module
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Any]]]]:
    """Megatron's forward_step_func, which keeps the logits behind each text."""
    batch = next(batches)
    output = chunk(batch.get("tokens"), batch.get("position_ids"), batch.get("attention_mask"))
    return output, partial(_behind, batch["numbers"], batch["lasts"])


def _behind(
    numbers: Sequence[int], lasts: Sequence[int], logits: Tensor
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """logits: [b, s, V / tensor-parallel ranks]. Copied row by row, for which no kernel is new: receives may wait."""
    places = enumerate(zip(numbers, lasts, strict=True))
    rows = {number: logits[row, last].clone() for row, (number, last) in places}
    return logits, torch.zeros((), dtype=torch.int, device=logits.device), {"behind": rows}
