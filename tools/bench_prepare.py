"""How fast text becomes a data set, beside the tokenizers library encoding the same documents, and in how much memory.

    python -m tools.bench_prepare                          # speed, a few minutes
    python -m tools.bench_prepare --memory --megabytes 500 # the peak at this size and at a fifth of it

Speed: one process each, in turn: `hcmegatron data prepare --workers 1` from files to a finished data set, and
encode_batch of texts that are in memory already, in one thread, with their ids taken as NumPy arrays. Corpora: Python's
standard library, Debian's documentation of Python where it is installed, and a synthetic one of its lines in documents
of about two thousand characters, written here and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the library is imported

import numpy as np

from hcmegatron.data.documents import Document, documents
from hcmegatron.data.huggingface import HuggingFace, train_bpe
from hcmegatron.data.inputs import find_files, pieces
from hcmegatron.data.parts import batches_of
from hcmegatron.data.prepare import Preparation
from tools.alternate import alternating, ratio
from tools.machine import Others, described
from tools.targets import Targets, exit_status

VOCABULARY = 8192
DOCUMENTATION = sorted(Path("/usr/share/doc").glob("python3.*/html/_sources"))[-1:]  # Debian's python3.11-doc
MB = 10**6


def main() -> int:
    """Prints a table; returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--megabytes", type=int, default=10, help="of the synthetic corpus (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="of every pair (default: 3)")
    parser.add_argument("--memory", action="store_true", help="only peak memory, at this size and a fifth")
    options = parser.parse_args()
    others = Others()
    print(described())
    targets = Targets()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = texts_of([])
        tokenizer = folder / "tokenizer.json"
        train_bpe(library, VOCABULARY, tokenizer)
        synthetic = write_synthetic(folder / "synthetic.jsonl", library, options.megabytes)
        if options.memory:
            fifth = write_synthetic(folder / "fifth.jsonl", library, options.megabytes // 5)
            peaks = [peak_memory(path, tokenizer, folder) for path in (fifth, synthetic)]
            grown = targets.at_most("peak memory, whole / fifth", peaks[1] / peaks[0], 1.05)
            print(
                f"peak memory of the largest process: {peaks[0]:.0f} MiB at {options.megabytes // 5} MB, "
                f"{peaks[1]:.0f} MiB at {options.megabytes} MB: {peaks[1] / peaks[0]:.3f} (target: {grown})"
            )
        else:
            corpora = {"standard library": [], f"synthetic, {options.megabytes} MB": [str(synthetic)]}
            if DOCUMENTATION:
                corpora["Python's documentation"] = [str(DOCUMENTATION[0])]
            print(
                f"| corpus | MB | tokens | prepare, MB/s | encode_batch, MB/s | ratio (target) |\n{'|---' * 6}|"
            )
            for what, paths in corpora.items():
                print(row(what, paths, tokenizer, folder, options.rounds, targets), flush=True)
    return others.verdict(lambda: exit_status(targets.missed))


def texts_of(paths: list[str]) -> list[str]:
    """Every document."""
    found = (one for piece in pieces(find_files(paths)[0]) for one in documents(piece, "text"))
    return [one.text for one in found if isinstance(one, Document)]


def write_synthetic(path: Path, library: list[str], megabytes: int) -> Path:
    """JSON Lines of so many megabytes of text."""
    lines = [line for text in library for line in text.splitlines(keepends=True)]
    draw = random.Random(0)
    left = megabytes * MB
    with path.open("w") as stream:
        while left > 0:
            at = draw.randrange(len(lines))
            text = "".join(lines[at : at + draw.randrange(10, 90)])
            stream.write(json.dumps({"text": text}) + "\n")
            left -= len(text)
    return path


def row(what: str, paths: list[str], tokenizer: Path, folder: Path, rounds: int, targets: Targets) -> str:
    """A line of the table."""
    texts, library, out = texts_of(paths), HuggingFace(tokenizer), folder / "set"
    tokens = 0

    def prepared() -> None:
        nonlocal tokens
        tokens = Preparation(paths, str(tokenizer), out).run(1).manifest.tokens
        shutil.rmtree(out)

    def plain() -> None:
        for batch in batches_of(texts):
            encoded = library.library.encode_batch(batch, add_special_tokens=False)
            _ = [np.array(one.ids, library.dtype) for one in encoded]

    times = alternating({"prepare": prepared, "plain": plain}, rounds, warmup=0)
    size = sum(len(text.encode()) for text in texts) / MB
    speeds = [size / statistics.median(seconds) for seconds in times.values()]
    found = ratio(times, "plain", "prepare")
    target = targets.between(f"{what}: prepare / encode_batch", found, 0.95, 100)
    return (
        f"| {what} | {size:.1f} | {tokens:,} | {speeds[0]:.2f} | {speeds[1]:.2f} | {found:.3f} ({target}) |"
    )


def peak_memory(path: Path, tokenizer: Path, folder: Path) -> float:
    """MiB of the largest of the command's processes."""
    out = folder / "set"
    arguments = [str(path), "--tokenizer", str(tokenizer), "--out", str(out), "--workers", "2"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "hcmegatron", "data", "prepare", *arguments], stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"hcmegatron data prepare {' '.join(arguments)} failed")
    print(f"{path.name}: {time.perf_counter() - began:.0f} s with two processes", flush=True)
    shutil.rmtree(out)
    return used.ru_maxrss / 1024


if __name__ == "__main__":
    raise SystemExit(main())
