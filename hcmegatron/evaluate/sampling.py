"""Which token comes next: the likeliest, or one that is drawn.

What is drawn is a function of the seed, the text's number and the token's position in it, and of the probabilities:
no generator has a state, so that layouts, batches and other texts change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hcmegatron.platform.seeds import seed_of


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: of the softmax that they are drawn from, above 0; None takes the likeliest instead.
        top_p: they are drawn from the likeliest tokens that together have this probability (nucleus sampling, Holtzman
            et al., 2020, arXiv 1904.09751), above 0 and up to 1, which is all of them.
        seed: of the draws.
    """

    temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0


GREEDY = Sampling()


def choose(logits: np.ndarray, sampling: Sampling, text: int, position: int) -> int:
    """The next token of text number `text` at `position`, counted from its first token that was not given.

    Args:
        logits: [V], of finite numbers.
    """
    if sampling.temperature is None:
        return int(logits.argmax())  # the first of equals
    kept = nucleus(softmax(logits, sampling.temperature), sampling.top_p)
    return draw(kept, uniform(sampling.seed, text, position))


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [V] in fp64."""
    powers = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return powers / powers.sum()


def nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """[V]: the same for the smallest set of likeliest tokens that have `top_p` together, 0 for all others."""
    order = np.argsort(-probabilities, kind="stable")
    likelier = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.zeros_like(probabilities)
    within = order[likelier < top_p]
    kept[within] = probabilities[within]
    return kept


def draw(weights: np.ndarray, at: float) -> int:
    """The token at share `at` of the sum of `weights` [V], which lie end to end in the order of their ids.

    In that order, and not in the one of their sizes, a difference by rounding moves a border and exchanges nothing.
    """
    ids = np.flatnonzero(weights)
    ends = np.cumsum(weights[ids])
    return int(ids[min(np.searchsorted(ends, at * ends[-1], side="right"), len(ids) - 1)])


def uniform(seed: int, text: int, position: int) -> float:
    """A number in [0, 1) that is a function of these."""
    return (seed_of(seed, "token", text, position) >> 10) / 2**53
