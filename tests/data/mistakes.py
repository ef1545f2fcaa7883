"""Input that cannot be used, commands for it, and what they say: one line, with nothing lost or taken for whole."""

import json
from pathlib import Path

from hcmegatron.cli import main
from hcmegatron.data import documents
from hcmegatron.data.prepare import Preparation
from tests.data.prepared import data_set


def made(path: Path, content: bytes = b"some text\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def linked(path: Path, target: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def good(folder: Path) -> Path:
    return made(folder / "good.txt")


def begun(folder: Path, plan: bytes | None = None) -> str:
    """A preparation that was interrupted at its very beginning."""
    Preparation([str(good(folder))], "byte", folder / "begun")
    if plan is not None:
        (folder / "begun/plan.json").write_bytes(plan)
    return f"--out={folder / 'begun'}"


def prepared(folder: Path, file: str = "", content: bytes | None = None, **manifest: object) -> str:
    """A data set of which a file has other content (None: is gone), or the manifest other entries."""
    path = data_set(folder / "whole", ["a text " * 9, "another text"])
    if file and content is None:
        (path / file).unlink()
    elif file:
        (path / file).write_bytes(content)
    if manifest:
        told = json.loads((path / "manifest.json").read_text()) | manifest
        kept = {key: value for key, value in told.items() if value is not None}
        (path / "manifest.json").write_text(json.dumps(kept))
    return str(path)


def prepare(*words: object) -> list[str]:
    """Of these paths and options, into `set` beside the first path where no other place is named."""
    out = (
        []
        if any(str(word).startswith("--out") for word in words)
        else [f"--out={Path(words[0]).parent / 'set'}"]
    )
    return ["data", "prepare", "--workers=1", *map(str, words), *out]


def content(folder: Path) -> dict[Path, bytes]:
    """Of all files below a folder."""
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "proc" not in str(path.resolve())
    }


def require_one_line(make, words: str, folder: Path, capsys, monkeypatch) -> None:
    """Of the command that `make` gives: status 2, and no file lost or taken for whole."""
    monkeypatch.setattr(documents, "LONGEST_TEXT", 4096)
    arguments = make(folder)
    before = content(folder)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("hcmegatron: error: ") and printed.err.count("\n") == 1, printed.err
    assert words in printed.err
    after = content(folder)
    lost = {path for path in before if after.get(path) != before[path] and path.name != "plan.json"}
    whole = {path.name for path in after.keys() - before.keys()} & {"manifest.json", "tokens.bin", "t.json"}
    assert not lost and not whole
