"""torch's index of a checkpoint, the pickle .metadata, read without running what somebody has written into it.

The tensors' files are read by torch with weights_only, but the index by pickle, which calls whatever it is told to.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

# What an index consists of: shapes, offsets, dtypes, names of files. None does anything when it is made.
_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    # Megatron's empty classes, in format 1
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


class UnsafeIndex(Exception):
    """An index that asks for something to be run, or for files elsewhere."""


class Reader(dcp.FileSystemReader):
    """torch's reader of a checkpoint's directory. Running code is refused, and so are files outside of it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index. Raises UnsafeIndex, and what a damaged pickle raises."""
        with (Path(self.path) / ".metadata").open("rb") as stream:
            metadata = _Unpickler(stream).load()
        if not isinstance(metadata, Metadata):
            raise UnsafeIndex(".metadata is no index of a checkpoint")
        for info in (metadata.storage_data or {}).values():
            if Path(info.relative_path).name != str(info.relative_path):
                raise UnsafeIndex(f".metadata names {info.relative_path}, which is elsewhere")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = (
            "pathlib" if module == "pathlib._local" else module
        )  # where Python 3.13 has it, and 3.12 has not
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise UnsafeIndex(
            f".metadata asks for {module}.{name}, which is refused: reading a checkpoint runs no code"
        )
