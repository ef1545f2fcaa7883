"""The verb `data`: a tokenizer of any text, text as a data set to train on, and what there is in one."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hcmegatron.config import ConfigError

if TYPE_CHECKING:
    from hcmegatron.data.prepare import Prepared, Progress

DAMAGED = 1  # exit status of check
_LENGTH = 256  # of a sequence that is shown
_SHOWN = 20  # rejected lines that are printed; the others are counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own words."""
    parser.description = "Text as data sets that training reads from mapped memory (docs/data.md)."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    tokenizer = actions.add_parser(
        "tokenizer", help="train a byte-level BPE (tokenizer.json)", allow_abbrev=False
    )
    tokenizer.add_argument("--vocab", metavar="N", type=int, required=True, help="ids that it may have")
    tokenizer.add_argument("--out", metavar="FILE", type=Path, required=True)
    prepare = actions.add_parser(
        "prepare",
        help="text as Megatron's indexed tokens",
        description="Text files, JSON Lines and Parquet as one data set, on all cores. Interrupted, the same command "
        "goes on. What is no document is rejected, counted and listed.",
        allow_abbrev=False,
    )
    prepare.add_argument(
        "--tokenizer", metavar="NAME", default="byte", help="as data.tokenizer has it (default: byte)"
    )
    prepare.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the data set, which is not there yet"
    )
    prepare.add_argument("--workers", metavar="N", type=int, help="processes (default: as many as cores)")
    prepare.add_argument("--drop-duplicates", action="store_true", help="keep the first of equal documents")
    for action in (tokenizer, prepare):
        action.add_argument(
            "paths",
            metavar="PATH",
            nargs="*",
            help="files and directories, all together, before the options or after; none: the standard library's "
            "sources",
        )
        action.add_argument(
            "--field",
            metavar="NAME",
            default="text",
            help="the text's, in JSON Lines and Parquet (default: text)",
        )
    show = actions.add_parser(
        "show", help="what a data set is; or one sequence of it, as text and tokens", allow_abbrev=False
    )
    check = actions.add_parser(
        "check", help="compare every byte with its checksum; status 1 where any differs", allow_abbrev=False
    )
    for action in (show, check):
        action.add_argument("path", metavar="DIR", type=Path)
    show.add_argument("--sample", metavar="N", type=int, help="the N-th sequence, as the documents lie")
    for action in (tokenizer, prepare, show, check):
        action.set_defaults(parser=action)  # for what is said of words that it does not know
    show.add_argument("--length", metavar="S", type=int, help=f"its tokens (default: {_LENGTH})")


def main(options: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        ConfigError: input that cannot be used, or a place that cannot be written.
    """
    actions = {"tokenizer": _tokenizer, "prepare": _prepare, "show": _show, "check": _check}
    return actions[options.action](options)


def _tokenizer(options: argparse.Namespace) -> int:
    from hcmegatron.data.documents import Document, Rejected, documents, no_documents
    from hcmegatron.data.huggingface import train_bpe
    from hcmegatron.data.inputs import find_files, pieces

    files, passed_over = find_files(options.paths)
    if not options.out.absolute().parent.is_dir():
        raise ConfigError(f"--out {options.out}: the directory is not there; make it, or name another file")
    work = pieces(files)
    taken = rejected = 0
    first: Rejected | None = None

    def texts(progress: Progress) -> Iterator[str]:
        nonlocal taken, rejected, first
        for piece in work:
            for one in documents(piece, options.field):
                if isinstance(one, Document):
                    taken += 1
                    yield one.text
                else:
                    rejected += 1
                    first = first or one
            progress(piece.bytes)
        if not taken:
            raise no_documents(rejected, first)

    with _progress("reading", sum(piece.bytes for piece in work)) as progress:
        size = train_bpe(texts(progress), options.vocab, options.out)
    for line in passed_over:
        print(line)
    print(f"{options.out}: {size:,} ids, of {len(files):,} files, {rejected:,} lines or files rejected")
    if size < options.vocab:
        print(f"fewer ids than --vocab {options.vocab}: the text has no more pairs that occur twice")
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from hcmegatron.data.prepare import Preparation

    workers = len(os.sched_getaffinity(0)) if options.workers is None else options.workers
    if workers < 1:
        raise ConfigError(f"--workers {workers}: at least 1")
    preparation = Preparation(
        options.paths, options.tokenizer, options.out, options.field, options.drop_duplicates
    )
    with _progress("preparing", preparation.bytes) as progress:
        done = preparation.run(workers, progress)
    _report(options.out, done)
    return 0


def _report(out: Path, done: Prepared) -> None:
    manifest = done.manifest
    for line in done.passed_over:
        print(line)
    for file, line, reason in done.rejections[:_SHOWN]:
        print(f"rejected: {file}:{line}: {reason}")
    if manifest.rejected > _SHOWN:
        print(f"rejected: {manifest.rejected - _SHOWN:,} more")
    if done.parts_kept:
        print(f"went on: {done.parts_kept:,} parts were there already")
    for line in _words(manifest):
        print(line)
    print(f"train on it with --data.paths=[{out}] --data.tokenizer={_tokenizer_of(out, manifest.tokenizer)}")


def _words(manifest) -> list[str]:  # noqa: ANN001  (prepared.Manifest, imported when a verb runs)
    return [
        f"{manifest.documents:,} documents, {manifest.tokens:,} tokens with their ends, {manifest.bytes:,} bytes: "
        f"{manifest.bytes / (manifest.tokens - manifest.documents or 1):.3f} bytes a token",
        f"shortest {manifest.shortest:,} tokens, longest {manifest.longest:,}; {manifest.rejected:,} rejected, "
        f"{manifest.duplicates:,} duplicates dropped",
        f"tokenizer {manifest.tokenizer} ({manifest.fingerprint}), {manifest.vocab_size:,} ids, "
        f"end of a document {manifest.end_of_document}",
    ]


def _show(options: argparse.Namespace) -> int:
    from hcmegatron.data.prepared import read_manifest

    manifest = read_manifest(options.path)
    if options.sample is None:
        if options.length is not None:
            raise ConfigError(
                f"--length {options.length}: of a sequence, and none is asked for; add --sample N"
            )
        print("\n".join(_words(manifest)))
        return 0
    from hcmegatron.data.inspect import sequence

    length = _LENGTH if options.length is None else options.length
    for line in sequence(options.path, manifest, options.sample, length):
        print(line)
    return 0


def _check(options: argparse.Namespace) -> int:
    from hcmegatron.data.inspect import faults
    from hcmegatron.data.prepared import read_manifest

    manifest = read_manifest(options.path)
    found = faults(options.path, manifest)
    for line in found:
        print(f"{options.path}: {line}")
    if not found:
        print(
            f"{options.path}: {len(manifest.files)} files, {manifest.documents:,} documents: as they were written"
        )
    return DAMAGED if found else 0


def _tokenizer_of(path: Path, name: str) -> str:
    return str(path / name) if (path / name).is_file() else name


@contextmanager
def _progress(what: str, size: int) -> Iterator[Progress]:
    """A bar over bytes of input, on a terminal's standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(file=sys.stderr)
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(what, total=size)
        yield lambda done: bar.advance(task, done)
