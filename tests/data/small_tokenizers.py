"""A small tokenizer of every kind, made here: none is downloaded."""

import base64
import io
from pathlib import Path

import sentencepiece
import tiktoken
from tiktoken import registry

from hcmegatron.data.huggingface import train_bpe

LINES = ["abcd dcba abcdabcd\n", "the end of the line\n", "naïve – ünïcode\n", "def f(x):\n    return x\n"]


def byte_level(folder: Path, vocab_size: int = 300, lines: list[str] = LINES) -> Path:
    """A tokenizer.json of byte-level BPE."""
    path = folder / f"bpe{vocab_size}.json"
    train_bpe(lines * 3, vocab_size, path)
    return path


def sentence_piece(
    folder: Path, remove_extra_whitespaces: bool = False, add_dummy_prefix: bool = False
) -> Path:
    """A .model of SentencePiece, with single bytes for what it has not seen."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=add_dummy_prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=remove_extra_whitespaces,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = folder / "small.model"
    path.write_bytes(model.getvalue())
    return path


def tik_token() -> str:
    """The name of an encoding that tiktoken has from here on: bytes, and `ab` as one token."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {base64.b64decode("YWI="): 256}
    registry.ENCODINGS["small"] = tiktoken.Encoding(
        "small", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 257}
    )
    return "tiktoken:small"


def tokenizers_made(folder: Path) -> dict[str, str]:
    """By their pattern in TOKENIZERS, what data.tokenizer is for them."""
    return {
        "byte": "byte",
        "tiktoken:*": tik_token(),
        "*.model": str(sentence_piece(folder)),
        "*.json": str(byte_level(folder)),
    }
