"""`hcmegatron data prepare`: text as Megatron's indexed tokens, on all cores, and goes on where it was interrupted.

Each piece of the input becomes a part, in a process of its own. plan.json says what was asked for; a part is whole when
its .json is there. When all are, they are joined, the manifest is written, and the parts are removed.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.documents import Rejected, no_documents
from hcmegatron.data.inputs import Piece, find_files, pieces
from hcmegatron.data.parts import Part, digests, first_occurrences, join, read_part, write_part
from hcmegatron.data.prepared import MANIFEST, PARTS, PLAN, Manifest, name_beside, write_json
from hcmegatron.data.tokenizer import Tokenizer
from hcmegatron.data.tokenizer_registry import build_tokenizer
from hcmegatron.platform.process_signals import end_with_parent

Progress = Callable[[int], None]  # is told of bytes of input that are done


@dataclass(frozen=True)
class Prepared:
    """What came of it. rejections: the first of what was rejected; passed_over: files of other kinds, in words."""

    manifest: Manifest
    rejections: tuple[Rejected, ...]
    passed_over: tuple[str, ...]
    parts_kept: int  # of an earlier, interrupted call


class Preparation:
    """What is to be prepared. Input and what there is already are looked at when it is made.

    Args:
        paths: files and directories; none: the standard library's sources.
        tokenizer: as data.tokenizer names it.
        out: a directory that is not there, is empty, or was begun with the same words.

    Raises:
        ConfigError: input that cannot be used; out is something else; an interrupted call had other words.
    """

    def __init__(
        self,
        paths: Sequence[str],
        tokenizer: str,
        out: Path,
        text_field: str = "text",
        drop_duplicates: bool = False,
        piece_bytes: int | None = None,
    ) -> None:
        self.out, self.text_field, self.drop_duplicates = out, text_field, drop_duplicates
        self.name, self.tokenizer = tokenizer, build_tokenizer(tokenizer)
        files, self.passed_over = find_files(paths)
        self.pieces = pieces(files, piece_bytes) if piece_bytes else pieces(files)
        self.bytes = sum(piece.bytes for piece in self.pieces)
        plan = {
            "files": [[str(file.path.absolute()), file.size, file.path.stat().st_mtime_ns] for file in files],
            "tokenizer": self.tokenizer.fingerprint,
            "field": text_field,
            "drop duplicates": drop_duplicates,
            "bytes of a piece": piece_bytes,
        }
        for name in paths:
            if out.resolve().is_relative_to(Path(name).resolve()) and Path(name).is_dir():
                raise ConfigError(f"--out {out} is inside of the input {name}; name another directory")
        self._claim(plan)

    def run(self, workers: int, progress: Progress = lambda size: None) -> Prepared:
        """Prepare it with so many processes.

        Raises:
            ConfigError: no document in the input, a file that cannot be read, or a disk that is full.
        """
        try:
            with _locked(self.out):
                return self._run(workers, progress)
        except BlockingIOError:
            raise ConfigError(f"{self.out}: another process is preparing it; wait for that") from None
        except OSError as error:
            raise ConfigError(
                f"{self.out} cannot be written: {error.strerror}; make room, then run the same command again: it goes "
                "on with what is there"
            ) from None
        except BrokenProcessPool:
            raise ConfigError(
                f"{self.out}: a process was killed, perhaps for want of memory; run the same command again, with fewer "
                "--workers: it goes on with what is there"
            ) from None

    def _run(self, workers: int, progress: Progress) -> Prepared:
        prefixes = [self.out / PARTS / f"{number:06}" for number in range(len(self.pieces))]
        parts = [read_part(prefix) for prefix in prefixes]
        kept = sum(part is not None for part in parts)
        work = [number for number, part in enumerate(parts) if part is None]
        for number in set(range(len(parts))).difference(work):
            progress(self.pieces[number].bytes)
        masks: list[np.ndarray | None] = [None] * len(parts)
        with _pool(workers, self.tokenizer) as pool:
            if self.drop_duplicates and work:
                scan = partial(digests, text_field=self.text_field)
                masks = first_occurrences([found for _, found in _in_order(pool, scan, self.pieces, workers)])
            jobs = [(self.pieces[n], prefixes[n], self.text_field, masks[n]) for n in work]
            for at, part in _in_order(pool, _write, jobs, workers):
                parts[work[at]] = part
                progress(self.pieces[work[at]].bytes)
        whole = Part()
        for part in parts:
            whole.add(part)
        if not whole.documents:
            shutil.rmtree(self.out)
            raise no_documents(whole.rejected, next(iter(whole.rejections), None))
        manifest = self._finish(prefixes, whole)
        return Prepared(manifest, tuple(whole.rejections), tuple(self.passed_over), kept)

    def _finish(self, prefixes: list[Path], whole: Part) -> Manifest:
        own = {name_beside(file): file for file in self.tokenizer.files}
        files = join(prefixes, self.out, self.tokenizer.dtype, own)
        manifest = Manifest(
            next(iter(own), self.name),
            self.tokenizer.fingerprint,
            self.tokenizer.vocab_size,
            self.tokenizer.end_of_document,
            whole.documents,
            whole.tokens,
            whole.bytes,
            whole.token_bytes,
            whole.shortest or 0,
            whole.longest,
            whole.rejected,
            whole.duplicates,
            files,
        )
        manifest.write(self.out)
        self._tidy()
        return manifest

    def _tidy(self) -> None:
        """What a whole data set needs no more."""
        shutil.rmtree(self.out / PARTS, ignore_errors=True)
        (self.out / PLAN).unlink(missing_ok=True)

    def _claim(self, plan: dict[str, Any]) -> None:
        """The directory, new or as an interrupted call with the same words has left it."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if (self.out / MANIFEST).exists():
                self._tidy()  # of one that was killed at its very end
                raise ConfigError(
                    f"{self.out}: a prepared data set is there already; name another --out, or remove it"
                )
            if (self.out / PLAN).exists():
                begun = dict(json.loads((self.out / PLAN).read_bytes()))
                if other := [name for name in plan if begun.get(name) != plan[name]]:
                    raise ConfigError(
                        f"{self.out}: begun with another input ({', '.join(other)} differ); name another --out, or "
                        "remove it"
                    )
            elif any(self.out.iterdir()):
                raise ConfigError(f"{self.out}: something else is there; name another --out")
            write_json(self.out / PLAN, plan)
            (self.out / PARTS).mkdir(exist_ok=True)
        except (ValueError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{self.out}: {PLAN} is damaged ({error}); remove the directory") from None
        except OSError as error:
            raise ConfigError(f"{self.out} cannot be written: {error.strerror}; name another --out") from None


_tokenizer: list[Tokenizer] = []  # of a worker: what it inherits when it is forked, sent to it nowhere


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """BlockingIOError where another process has it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _pool(workers: int, tokenizer: Tokenizer) -> Iterator[ProcessPoolExecutor]:
    """Processes that are killed when the context is left by an exception: a part is whole or not there."""
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (tokenizer,)) as pool:
        try:
            with _no_interruption():
                pool.submit(int)  # the workers are forked at the first job, all of them
            yield pool
        except BaseException:  # Ctrl-C too; shutdown would wait for all that the queue to the workers holds
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


@contextmanager
def _no_interruption() -> Iterator[None]:
    """Ctrl-C waits until the context is left: what a signal raises in one of Python's hooks for forks is printed, and
    forgotten."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin(tokenizer: Tokenizer) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    end_with_parent(signal.SIGKILL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a process of its own
    _tokenizer[:] = [tokenizer]


def _write(job: tuple[Piece, Path, str, np.ndarray | None]) -> Part:
    piece, prefix, text_field, kept = job
    return write_part(piece, prefix, _tokenizer[0], text_field, kept)


def _in_order(
    pool: ProcessPoolExecutor, function: Callable, jobs: Sequence[Any], workers: int
) -> Iterator[tuple[int, Any]]:
    """(index, result) of each job, in order; no more are waiting than keep the workers busy."""
    waiting: deque[Future] = deque()
    done = 0
    for job in jobs:
        waiting.append(pool.submit(function, job))
        if len(waiting) > 2 * workers:
            yield done, waiting.popleft().result()
            done += 1
    while waiting:
        yield done, waiting.popleft().result()
        done += 1
