"""A prepared data set's tokens, as mapped memory: opened at once, whatever their number, and shared by all ranks."""

from __future__ import annotations

import os

import numpy as np

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.blend import PreparedSet
from hcmegatron.data.prepared import TOKENS
from hcmegatron.platform import megatron as _adapter  # noqa: F401  (before Megatron)
from megatron.core.datasets.indexed_dataset import IndexedDataset


class _Dataset(IndexedDataset):
    """Megatron's, without its own end, which prints a traceback where the index was none; what it holds ends itself."""

    def __del__(self) -> None:
        """Nothing more."""


class MappedTokens:
    """Tokens start..stop of an IndexedDataset, read as an array is: by length and slice."""

    def __init__(self, dataset: IndexedDataset, path: str, start: int, stop: int) -> None:
        self.dataset, self.start, self.stop = dataset, start, stop
        self._file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, span: slice) -> np.ndarray:
        """Consecutive tokens, copied: Megatron unmaps its file when the data set goes, whoever still looks at it."""
        begin, stop, _ = span.indices(len(self))
        dtype = self.dataset.index.dtype
        at = (self.start + begin) * np.dtype(dtype).itemsize
        return self.dataset.bin_reader.read(dtype, max(0, stop - begin), at).copy()

    def ahead(self, begin: int, stop: int) -> None:
        """These tokens will be read soon: the system fetches them meanwhile, and nobody waits."""
        size = np.dtype(self.dataset.index.dtype).itemsize
        os.posix_fadvise(
            self._file, (self.start + begin) * size, (stop - begin) * size, os.POSIX_FADV_WILLNEED
        )


def open_set(found: PreparedSet, held_out: float) -> tuple[MappedTokens, MappedTokens]:
    """The tokens to train on, and the last documents, which are about such a share of all.

    A last document that alone is far more than the share is cut, as a set of one document is.

    Raises:
        ConfigError: the files are not what Megatron reads, or not what the manifest says.
    """
    prefix, tokens = str(found.path / TOKENS), found.manifest.tokens
    try:
        dataset = _Dataset(prefix)
    except (AssertionError, ValueError, OSError) as error:
        raise ConfigError(
            f"{found.path}: {TOKENS}.idx is damaged ({error}); prepare the data again"
        ) from None
    begins = dataset.index.sequence_pointers
    cut = tokens
    if held_out > 0:
        size = np.dtype(dataset.index.dtype).itemsize
        wanted = round((1 - held_out) * tokens)
        cut = int(begins[min(np.searchsorted(begins, wanted * size), len(begins) - 1)]) // size
        if tokens - cut > max(0.5, 2 * held_out) * tokens or not cut:
            cut = wanted
    path = f"{prefix}.bin"
    return MappedTokens(dataset, path, 0, cut), MappedTokens(dataset, path, cut, tokens)
