"""What data.tokenizer names: `byte`, a Hugging Face tokenizer.json, a SentencePiece .model, or tiktoken:NAME."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.tokenizer import ByteTokenizer, Tokenizer


def _huggingface(name: str) -> Tokenizer:
    from hcmegatron.data.huggingface import HuggingFace

    return HuggingFace(_file(name))


def _sentencepiece(name: str) -> Tokenizer:
    from hcmegatron.data.other_tokenizers import SentencePiece

    return SentencePiece(_file(name))


def _tiktoken(name: str) -> Tokenizer:
    from hcmegatron.data.other_tokenizers import TikToken

    return TikToken(name)


# A pattern that data.tokenizer fits -> what makes the tokenizer of it. Libraries are imported when one is asked for.
TOKENIZERS: dict[str, Callable[[str], Tokenizer]] = {
    "byte": lambda name: ByteTokenizer(),
    "tiktoken:*": _tiktoken,
    "*.model": _sentencepiece,
    "*.json": _huggingface,
}


def build_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that data.tokenizer names.

    Raises:
        ConfigError: there is no such file, it is no tokenizer, it has no end of document, or its library is missing.
    """
    for pattern, make in TOKENIZERS.items():
        if fnmatchcase(name, pattern):
            return make(name)
    raise ConfigError(f"data.tokenizer = {name}: no known tokenizer; name one of {', '.join(TOKENIZERS)}")


def _file(name: str) -> Path:
    if not Path(name).is_file():
        raise ConfigError(f"data.tokenizer = {name}: there is no such file; name another, or byte")
    return Path(name)
