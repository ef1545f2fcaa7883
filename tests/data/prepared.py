"""Prepared data sets of a few documents, for tests."""

import json
from pathlib import Path

from hcmegatron.data.prepare import Preparation


def lines(path: Path, texts: list[str], field: str = "text") -> Path:
    """A file of JSON Lines."""
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return path


def data_set(folder: Path, texts: list[str], tokenizer: str = "byte", **options) -> Path:
    """A data set of these documents."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = lines(folder.parent / f"{folder.name}.jsonl", texts)
    Preparation([str(written)], tokenizer, folder, **options).run(1)
    return folder


def written(path: Path) -> Path:
    """A file of a line, in a folder that may not be there."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("some text\n")
    return path
