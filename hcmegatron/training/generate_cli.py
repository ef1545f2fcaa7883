"""The verb `generate`: text from a checkpoint of a run, in one process or any layout. No torch before there is work."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hcmegatron.config import Config, ConfigError, smallest_world
from hcmegatron.evaluate.prompts import encoded, read_prompts
from hcmegatron.planner.cli import Once
from hcmegatron.platform import standard_streams
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.launcher_end import PATIENCE_S
from hcmegatron.training import resume
from hcmegatron.training.from_checkpoint import SETTINGS, configured, find_checkpoint

if TYPE_CHECKING:
    from hcmegatron.data.tokenizer import Tokenizer
    from hcmegatron.evaluate.generation import Continuation
    from hcmegatron.platform.ranks import RankInfo
    from hcmegatron.training.manifest import Manifest

OPTIONS = (
    "--prompt",
    "--prompts",
    "--tokens",
    "--greedy",
    "--temperature",
    "--top-p",
    "--seed",
    "--step",
    "--json",
)
COLDEST = 1e-6  # temperature: from there down only the likeliest token would be drawn, or fp64 overflow
TOKENS = 64  # of a text, where they are not asked for and fit


@dataclass(frozen=True)
class Asked:
    """What is to be generated: everything that a rank has to know.

    Attributes:
        path: of the checkpoint; step: that it is after.
        prompts: as tokens; texts: the same, decoded.
        tokens: that each is continued by at most.
        drawn: fields of Sampling, which needs torch.
    """

    config: Config
    path: Path
    step: int
    prompts: list[list[int]]
    texts: list[str]
    tokens: int
    drawn: dict[str, Any]
    as_json: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own words; every other --word is a setting of the configuration."""
    parser.usage = (
        "hcmegatron generate RUN --prompt TEXT [--greedy | --temperature T --top-p P] [...] "
        "[--section.key=value ...]"
    )
    parser.description = (
        "Continue texts with the newest whole checkpoint of a run, in one process whatever the run's layout was; in "
        "another layout with --parallel.pipeline=2 and so on, or under a launcher. There is no cache of keys and "
        "values: a token costs a forward over the whole text."
    )
    parser.epilog = f"settings that may be given: {' '.join(SETTINGS)}"
    parser.add_argument("run_directory", metavar="RUN", type=Path, help="a run directory, or a checkpoint")
    parser.add_argument(
        "--prompt", metavar="TEXT", action="append", default=[], help="a text to go on from; may be repeated"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        action=Once,
        help='a prompt in each line; of FILE.jsonl {"prompt": "text"}',
    )
    parser.add_argument(
        "--tokens", metavar="N", action=Once, help=f"at most, of each text (default: {TOKENS}, or what fits)"
    )
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument(
        "--temperature",
        metavar="T",
        action=Once,
        help="of the softmax that tokens are drawn from (default: 1)",
    )
    parser.add_argument(
        "--top-p",
        metavar="P",
        action=Once,
        help="draw from the likeliest tokens that have this probability together (default: 1, all)",
    )
    parser.add_argument("--seed", metavar="N", action=Once, help="of the draws (default: 0)")
    parser.add_argument(
        "--step", metavar="N", action=Once, help="the checkpoint after this step, not the newest"
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON for each prompt")


def main(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run the verb.

    Raises:
        ConfigError: there is no such checkpoint, prompt or layout; or the checkpoint is damaged.
    """
    from hcmegatron.platform import cuda_environment
    from hcmegatron.platform.ranks import discover_ranks

    ranks = discover_ranks(os.environ)
    try:
        asked = _asked(options, overrides, ranks)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        cuda_environment.prepare(os.environ)
        if ranks is None:
            return _start_ranks(asked)
        return _rank(asked, ranks)
    except (ConfigError, Ended) as error:
        if ranks is not None and ranks.local_rank > 0:
            if isinstance(error, Ended):
                return error.status
            time.sleep(
                PATIENCE_S
            )  # the first rank says what all have found, and its launcher ends the others
        raise


def _asked(options: argparse.Namespace, overrides: list[str], ranks: RankInfo | None) -> Asked:
    """All that can be wrong is found here, before anything is started."""
    drawn = _sampling(options)
    tokens = None if options.tokens is None else _whole("--tokens", options.tokens, 1)
    step = None if options.step is None else _whole("--step", options.step, 0)
    given = read_prompts(options.prompt, options.prompts)
    path, saved, older = find_checkpoint(options.run_directory, step)
    config, idle = configured(saved, path, overrides, 1 if ranks is None else ranks.world_size)
    if ranks is None or ranks.rank == 0:
        standard_streams.warn([*older, *idle])
    tokenizer = _tokenizer(config, path, saved)
    length = config.data.sequence_length
    prompts = [encoded(prompt, tokenizer, length) for prompt in given]
    # the last token of a text is chosen and not read
    room = length + 1 - max(map(len, prompts))
    if tokens is not None and tokens > room:
        longest = max(zip(prompts, given, strict=True), key=lambda pair: len(pair[0]))
        raise ConfigError(
            f"--tokens {tokens}: behind the {len(longest[0])} tokens of {longest[1].where} there is room for {room}, "
            f"as the network was trained on {length} (data.sequence_length); give fewer, or a shorter prompt"
        )
    texts = [tokenizer.decode(ids) for ids in prompts]
    tokens = min(TOKENS, room) if tokens is None else tokens
    return Asked(config, path, saved.step, prompts, texts, tokens, drawn, options.json)


def _tokenizer(config: Config, path: Path, saved: Manifest) -> Tokenizer:
    from hcmegatron.data.tokenizer_registry import build_tokenizer

    resume.check_tokenizer(config, path, saved)
    return build_tokenizer(config.data.tokenizer)


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of Sampling."""
    drawn = {"--temperature": options.temperature, "--top-p": options.top_p, "--seed": options.seed}
    given = [name for name, value in drawn.items() if value is not None]
    if options.greedy and given:
        raise ConfigError(
            f"--greedy beside {given[0]}: the likeliest token is not drawn; leave one of them out"
        )
    temperature = 1.0 if options.temperature is None else _number("--temperature", options.temperature)
    if temperature == 0:
        raise ConfigError("--temperature 0: nothing is drawn; use --greedy for the likeliest token")
    if temperature < COLDEST:
        raise ConfigError(
            f"--temperature {options.temperature}: {COLDEST} or more; use --greedy for the likeliest token"
        )
    top_p = 1.0 if options.top_p is None else _number("--top-p", options.top_p)
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p {options.top_p}: above 0 and up to 1, which is all tokens")
    seed = 0 if options.seed is None else _whole("--seed", options.seed, 0)
    return {} if options.greedy else {"temperature": temperature, "top_p": top_p, "seed": seed}


def _whole(name: str, text: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text[:12]) < 2**31:
        raise ConfigError(f"{name} {text}: a whole number from {least} to {2**31 - 1}")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:  # NaN is not, either
        raise ConfigError(f"{name} {text}: a number, 0 or more and below 1e6")
    return value


def _start_ranks(asked: Asked) -> int:
    """The ranks that hold the network once, on this machine's GPUs or else on its CPU."""
    import torch

    from hcmegatron.platform.local_launch import launch_ranks, start_method

    world_size = smallest_world(asked.config)
    method = start_method(world_size, torch.cuda.device_count(), "hcmegatron.training.generation")
    return launch_ranks(partial(_rank, asked), world_size, method)


def _rank(asked: Asked, ranks: RankInfo) -> int:
    """One rank: generates, and says it if it is the first."""
    import torch.distributed as dist

    from hcmegatron.evaluate.generation import NotFinite, generate, padded
    from hcmegatron.evaluate.sampling import Sampling
    from hcmegatron.platform.distributed import process_groups
    from hcmegatron.training.generation import load_network

    parallel = asked.config.parallel
    copies = ranks.world_size // (parallel.pipeline * parallel.tensor)
    micro_batch = min(asked.config.training.micro_batch, -(-len(asked.prompts) // copies))
    length = padded(max(map(len, asked.prompts)) + asked.tokens - 1, asked.config)
    with process_groups(asked.config, ranks) as groups:
        network = load_network(asked.config, groups, asked.path, length, micro_batch)
        try:
            found = generate(network, asked.prompts, asked.tokens, Sampling(**asked.drawn))
        except NotFinite as error:
            raise Ended(f"checkpoint {asked.path}: {error}: this network has diverged") from None
        dist.barrier()  # rank 0 holds what the others' groups end with
    if ranks.rank == 0:
        for number, text in enumerate(found):
            print(_shown(asked, number, text, text.text(network.tokenizer)))
    return 0


def _shown(asked: Asked, number: int, found: Continuation, text: str) -> str:
    """A prompt and what follows it, as JSON or for a reader; what would steer a terminal is no letter."""
    if asked.as_json:
        said: dict[str, Any] = {"prompt": asked.texts[number], "text": text, "tokens": found.tokens}
        return json.dumps(said | {"ended": found.ended, "step": asked.step})  # ASCII, whatever the locale
    whole = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in asked.texts[number] + text)
    return whole if len(asked.prompts) == 1 else f"--- prompt {number + 1} of {len(asked.prompts)}\n{whole}"
