"""Prompts as a user gives them, and as tokens. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.tokenizer import Tokenizer

MOST_BYTES = 1 << 26  # of a file of prompts


class Prompt(NamedTuple):
    """A text to go on from, and where it was given, in words."""

    where: str
    text: bytes


def read_prompts(typed: Sequence[str], file: Path | None) -> list[Prompt]:
    """Those of the command line, then those of a file: a line each, or of JSON Lines (.jsonl) the field `prompt`.

    Raises:
        ConfigError: there is none, one is empty, or the file is not what it should be.
    """
    found = [Prompt(f"--prompt {_short(text)}", os.fsencode(text)) for text in typed]
    if file is not None:
        found += _of_file(file)
    if not found:
        raise ConfigError("no prompt; give --prompt TEXT, or --prompts FILE with one in each line")
    for where, text in found:
        if not text.strip():
            raise ConfigError(f"{where.rstrip()}: the prompt is empty; give the text to go on from")
    return found


def encoded(prompt: Prompt, tokenizer: Tokenizer, length: int) -> list[int]:
    """Its tokens.

    Args:
        length: of a sequence in training.

    Raises:
        ConfigError: it is no text for this tokenizer, or longer than a sequence.
    """
    try:
        tokens = tokenizer.encode(prompt.text).tolist()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{prompt.where}: is not UTF-8 at byte {error.start}, and data.tokenizer has no tokens for single bytes"
        ) from None
    if not tokens:
        raise ConfigError(f"{prompt.where}: has no token in data.tokenizer; give another prompt")
    if len(tokens) > length:
        raise ConfigError(
            f"{prompt.where}: has {len(tokens)} tokens, and the network was trained on {length} "
            "(data.sequence_length); give a shorter prompt"
        )
    return tokens


def _of_file(file: Path) -> Iterator[Prompt]:
    try:
        if file.is_dir():
            raise ConfigError(f"--prompts {file}: is a directory; name a file with a prompt in each line")
        with file.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"--prompts {file}: {error.strerror}; name a file with a prompt in each line"
        ) from None
    if len(raw) > MOST_BYTES:
        raise ConfigError(
            f"--prompts {file}: is larger than {MOST_BYTES >> 20} MiB; give fewer prompts at once"
        )
    if b"\0" in raw:
        raise ConfigError(f"--prompts {file}: is binary; name a file with a prompt in each line")
    if not raw.strip():
        raise ConfigError(f"--prompts {file}: is empty; write a prompt in each line")
    for number, line in enumerate(raw.splitlines(), 1):
        where = f"{file}:{number}"
        yield Prompt(where, _of_json(where, line) if file.suffix == ".jsonl" else line)


def _of_json(where: str, line: bytes) -> bytes:
    try:
        written = json.loads(line)
        text = written["prompt"]
        return text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{where}: holds half of a surrogate pair, which is no character; correct it"
        ) from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ConfigError(f'{where}: is not {{"prompt": "some text"}} in JSON; correct it') from None


def _short(text: str) -> str:
    """Of a text, what fits an error line."""
    shown = ascii(text)[1:-1] if not text.isprintable() else text
    return shown if len(shown) <= 40 else shown[:37] + "..."
