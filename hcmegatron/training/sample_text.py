"""What a network makes of training.eval_prompt, token by token the likeliest."""

from __future__ import annotations

from collections.abc import Callable

from hcmegatron.config.schema import Config
from hcmegatron.data.tokenizer import Tokenizer
from hcmegatron.evaluate.generation import Network, NotFinite, generate
from hcmegatron.evaluate.prompts import Prompt, encoded
from hcmegatron.evaluate.sampling import GREEDY


def sampled_prompt(config: Config, tokenizer: Tokenizer) -> list[int]:
    """training.eval_prompt as tokens; none where it is null.

    Raises:
        ConfigError: it is longer than a sequence, or no text for the tokenizer.
    """
    prompt = config.training.eval_prompt
    if prompt is None:
        return []
    named = Prompt(f"training.eval_prompt = {prompt}", prompt.encode())
    return encoded(named, tokenizer, config.data.sequence_length)


def sample_text(network: Network, stopped: Callable[[], bool], say: Callable[[str], None]) -> str | None:
    """The text that follows the prompt; None where the run was `stopped`, or logits are not finite, which is said.
    Collective.

    Args:
        network: of an evaluation's shapes, so that nothing is new to the device. No random number is drawn.
    """
    prompt = sampled_prompt(network.config, network.tokenizer)
    room = min(network.config.training.eval_tokens, network.length + 1 - len(prompt))
    try:
        texts = generate(network, [prompt], room, GREEDY, stopped)
    except NotFinite as error:
        say(f"no text follows training.eval_prompt: {error}")
        return None
    return None if texts is None else texts[0].text(network.tokenizer)
