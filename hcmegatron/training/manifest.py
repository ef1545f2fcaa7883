"""The manifest of a checkpoint: what it is of, and the size and checksum of every file. No torch.

A checkpoint is a directory checkpoints/step-00000100. It is written as step-00000100.partial; the manifest comes last,
and the directory is renamed when everything is on the disk. So whatever has a manifest was complete once, and the
checksums say whether it still is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.left_out import LeftOut
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.training import checksums
from hcmegatron.training.checksums import File
from hcmegatron.training.spikes import Recent

MANIFEST = "manifest.json"
FORMAT = 4  # 3 knows neither left_out nor recent
PATTERN = "step-" + "[0-9]" * 8
LOST = (errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ELOOP, errno.EUCLEAN)
# Between two renames, a checkpoint that is saved once more: whole, and found under this name.
REPLACED = ".replaced"


class Damaged(ConfigError):
    """A checkpoint is not, or not any more, what it was when it was written.

    Attributes:
        what: the matter with it, in words, after "the checkpoint".
    """

    def __init__(self, checkpoint: Path, what: str, remedy: str) -> None:
        super().__init__(f"checkpoint {checkpoint} {what}; {remedy}")
        self.checkpoint, self.what, self.remedy = checkpoint, what, remedy

    def __reduce__(self) -> tuple[type, tuple[Path, str, str]]:
        return Damaged, (self.checkpoint, self.what, self.remedy)  # it is sent from rank to rank


class NotSaved(Ended):
    """A checkpoint could not be written, for a reason in words."""


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        step: steps done.
        samples: of the data's order, that they took or that were left out.
        left_out: of that order, what was left out or will be.
        recent: the good steps that the next ones are judged by.
    """

    step: int
    samples: int
    left_out: LeftOut = ()
    recent: Recent = ()


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of.

    Attributes:
        samples: None where format 1 does not say.
        updates: steps that changed the weights, which is what Adam counts.
        config: the run's whole resolved configuration, by dotted key; of format 1 what that says.
        text: the fingerprint of the corpus; None where format 1 does not say.
        environment: what the numbers depend on beside configuration and text.
        files: by name relative to the checkpoint.
        left_out, recent: see Progress.
    """

    step: int
    samples: int | None
    updates: int
    config: dict[str, Any]
    text: str | None
    environment: dict[str, Any]
    files: dict[str, File]
    left_out: LeftOut = ()
    recent: Recent = ()

    @property
    def first_format(self) -> bool:
        """Whether it was migrated from format 1."""
        return self.samples is None

    def write(self, checkpoint: Path) -> None:
        """Into the directory that holds the files; on the disk when this returns."""
        content = {"format": FORMAT, **asdict(self)}
        content["files"] = {
            name: {"bytes": file.bytes, "crc32": file.crc32} for name, file in self.files.items()
        }
        with (checkpoint / MANIFEST).open("w") as stream:
            json.dump({**content, "blake2b": _digest(content)}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        sync(checkpoint)


def name(step: int) -> str:
    """The directory of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def every(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first. Files, and what is half written, are none."""
    whole = [path for path in folder.glob(PATTERN) if path.is_dir()]
    waiting = [path for path in folder.glob(PATTERN + REPLACED) if path.is_dir()]
    return sorted(whole + [path for path in waiting if not path.with_suffix("").exists()])


def outdated(saved: Path, keep: int, kept: Collection[int] = ()) -> list[Path]:
    """Of the checkpoints before `saved`, all but the newest with which there are `keep`, and but those after the steps
    `kept`. Somebody's own directory with a checkpoint's name has no manifest, and is none of them."""
    stay = {name(step) for step in kept}
    older = [path for path in every(saved.parent) if path.name < saved.name and (path / MANIFEST).exists()]
    older = [path for path in older if path.name not in stay]
    return older[: max(0, len(older) + 1 - keep)]


def newest(directory: Path) -> Path | None:
    """The checkpoint of the highest step under `directory`/checkpoints (or in `directory` itself)."""
    for folder in (directory / "checkpoints", directory):
        if found := every(folder):
            return found[-1]
    return None


def read(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all there, in their sizes. No file is looked into.

    Raises:
        ConfigError: it is no checkpoint, incomplete, damaged, or of another format.
    """
    try:
        content = json.loads((checkpoint / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(
            checkpoint,
            f"is partial or no checkpoint: it has no {MANIFEST}",
            "name a complete one, or move it away to use the one before",
        ) from None
    except OSError as error:
        raise _unreadable(checkpoint, error) from None
    except (ValueError, RecursionError):
        raise corrupt(checkpoint, f"{MANIFEST} is not JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise corrupt(checkpoint, f"{MANIFEST} is not a manifest")
    version = content.pop("format", 1)
    if version == 1 and content.keys() >= {"step", "architecture", "layout"}:
        try:
            migrated = _migrated(content)
        except (KeyError, TypeError, ValueError, AttributeError):  # it has no checksum of its own
            raise corrupt(checkpoint, f"{MANIFEST} is not a manifest") from None
        return _with_files(checkpoint, migrated)
    # Of every format from 2 on: it tells one of a version to come from one whose format has lost a bit.
    if content.pop("blake2b", None) != _digest({"format": version, **content}):
        raise corrupt(checkpoint, f"{MANIFEST} is not as it was written")
    if version not in (2, 3, FORMAT):
        raise ConfigError(
            f"checkpoint {checkpoint} is of format {version}, and this program reads formats 1 to {FORMAT}; "
            "continue it with the version that wrote it"
        )
    return _with_files(checkpoint, _built(checkpoint, content))


def _built(checkpoint: Path, content: dict[str, Any]) -> Manifest:
    """The manifest of a content whose own checksum is right. Somebody else may have written it."""
    try:
        files = {file: checksums.described(**entry) for file, entry in content.pop("files").items()}
        pairs = {key: tuple(map(tuple, content.pop(key, ()))) for key in ("left_out", "recent")}
        built = Manifest(**content, files=files, **pairs)
        if not (
            isinstance(built.config, dict) and isinstance(built.environment, dict) and type(built.step) is int
        ):
            raise TypeError
        return built
    except (TypeError, ValueError, AttributeError):
        raise corrupt(checkpoint, f"{MANIFEST} is not a manifest") from None


def _migrated(content: dict[str, Any]) -> Manifest:
    """A manifest of format 1. It says nothing of samples and text, and Adam's count is taken to be the step's."""
    layout = dict(content["layout"])
    ranks = layout.pop("world_size")
    layout.pop("distributed_optimizer")  # what it came to, not the setting
    config = content["architecture"] | {f"parallel.{key}": value for key, value in layout.items()}
    files = {file: File(size) for file, size in content["files"].items()}
    return Manifest(content["step"], None, content["step"], config, None, {"ranks": ranks}, files)


def _with_files(checkpoint: Path, manifest: Manifest) -> Manifest:
    """The manifest, if its files are there in their sizes; ConfigError otherwise."""
    for file, entry in manifest.files.items():
        if Path(file).name != file:
            raise corrupt(checkpoint, f"{MANIFEST} names {file}, which is elsewhere")
        try:
            size = (checkpoint / file).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise corrupt(checkpoint, f"{file} is missing") from None
        except OSError as error:
            raise _unreadable(checkpoint, error) from None
        if size != entry.bytes:
            raise corrupt(checkpoint, f"{file} has {size} bytes, {entry.bytes} were written")
    return manifest


def verify(checkpoint: Path, manifest: Manifest, share: slice = slice(None)) -> None:
    """Compare files with their checksums.

    Args:
        share: of all the files' blocks: those that are compared.

    Raises:
        Damaged: one is not as it was written, or may not be read.
        ConfigError: one is not there, although it was when the manifest was read; or only for this rank.
    """
    try:
        found = checksums.differing(checkpoint, manifest.files, share)
    except OSError as error:
        raise _unreadable(checkpoint, error) from None
    if found is not None:
        raise corrupt(checkpoint, found)


def publish(partial: Path, checkpoint: Path) -> None:
    """Give a complete checkpoint its name. One that is there already exists, whole, until it is replaced."""
    replaced = checkpoint.with_name(checkpoint.name + REPLACED)
    if checkpoint.exists() and not checkpoint.is_dir():
        raise FileExistsError(errno.EEXIST, "a file has its name", str(checkpoint))
    if checkpoint.exists():
        checkpoint.rename(replaced)
    partial.rename(checkpoint)
    sync(checkpoint.parent)
    sync(checkpoint.parent.parent)  # the first checkpoint of a run has made the folder
    shutil.rmtree(replaced, ignore_errors=True)


def remove(checkpoint: Path) -> None:
    """Under its name it is whole, or not there: a run that is killed meanwhile leaves what `tidy` removes."""
    going = checkpoint.with_suffix(".partial")
    checkpoint.rename(going)
    shutil.rmtree(going)


def aside(checkpoint: Path) -> Path:
    """A free name for a damaged checkpoint, under which it is none any more: step-00000100.damaged, or .damaged-2."""
    plain = checkpoint.with_suffix(".damaged")
    names = [plain, *(plain.with_name(f"{plain.name}-{number}") for number in range(2, 1000))]
    return next(name for name in names if not name.exists())


def tidy(folder: Path) -> list[str]:
    """Remove what a run that was killed while saving left behind. Returns what was removed, in words.

    Only for the job that holds the run directory's lock: another one may be saving.
    """
    said = []
    for left in sorted([*folder.glob(PATTERN + ".partial"), *folder.glob(PATTERN + REPLACED)]):
        whole = left.with_suffix("")
        if left.suffix == REPLACED and not whole.exists():
            continue  # it is the checkpoint (see every), and this run may be about to load it
        with contextlib.suppress(OSError):
            shutil.rmtree(left)
            said.append(f"removed {left}, left by a run that was cut off while saving")
    return said


def sync(directory: Path) -> None:
    """Have the names in a directory on the disk, where its file system can do that."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def corrupt(checkpoint: Path, what: str) -> Damaged:
    """The error for a checkpoint that was complete once and is not any more."""
    return Damaged(checkpoint, f"is corrupt: {what}", "delete it to use the one before")


def _unreadable(checkpoint: Path, error: OSError) -> ConfigError:
    """What may not be read, or a disk has lost, is as if damaged. What a machine cannot see may be whole on another,
    and what it cannot read for want of descriptors, memory or a network is whole a moment later."""
    name = Path(error.filename).name if error.filename else "a file"
    if error.errno in LOST:
        return Damaged(
            checkpoint,
            f"cannot be read: {name}: {error.strerror}",
            "make it readable, or move it away to use the one before",
        )
    unseen = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
    remedy = "every rank has to see it" if unseen else "try again"
    return ConfigError(f"checkpoint {checkpoint} cannot be read: {name}: {error.strerror}; {remedy}")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
